// A real authorization server, from npm, on loopback: node issuer.mjs PORT RESOURCE...
// It gives JWT access tokens (RFC 9068) for the resources named (RFC 8707), by authorization code with PKCE to the public
// client "outside" and by client credentials to "robot". Nobody fills in a form: login_hint says who logs in, and whoever
// does consents to what is asked.
import { generateKeyPairSync } from 'node:crypto';
import Provider, { errors } from 'oidc-provider';

const [port, ...resources] = process.argv.slice(2);
const scopes = ['mcp', 'tools:read', 'tools:write'];
const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const key = { ...privateKey.export({ format: 'jwk' }), kid: 'outside-1', use: 'sig', alg: 'ES256' };
const lifetime = 300;

const provider = new Provider(`http://127.0.0.1:${port}`, {
  jwks: { keys: [key] },
  scopes: ['openid', 'offline_access', ...scopes],
  enabledJWA: { idTokenSigningAlgValues: ['ES256'] },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clients: [
    {
      client_id: 'outside',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code', 'refresh_token'],
      redirect_uris: ['http://127.0.0.1:9/callback'],
      scope: ['openid', 'offline_access', ...scopes].join(' '),
    },
    {
      client_id: 'robot',
      client_secret: 'robot-secret',
      grant_types: ['client_credentials'],
      response_types: [],
      redirect_uris: [],
      scope: scopes.join(' '),
    },
  ],
  cookies: { keys: ['outside'] },
  pkce: { required: () => true },
  ttl: { AccessToken: lifetime, ClientCredentials: lifetime, AuthorizationCode: 60, IdToken: 60, Session: 600, Grant: 600, Interaction: 60, RefreshToken: 600 },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (_, interaction) => `/log-in/${interaction.uid}` },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo: (_, resource) => {
        if (!resources.includes(resource)) throw new errors.InvalidTarget();
        return { scope: scopes.join(' '), audience: resource, accessTokenTTL: lifetime, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } };
      },
    },
  },
});

provider.use(async (ctx, next) => {
  if (!ctx.path.startsWith('/log-in/')) return next();
  const { prompt, params, session } = await provider.interactionDetails(ctx.req, ctx.res);
  if (prompt.name === 'login') {
    return provider.interactionFinished(ctx.req, ctx.res, { login: { accountId: params.login_hint } });
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  for (const resource of [params.resource].flat()) grant.addResourceScope(resource, params.scope);
  return provider.interactionFinished(ctx.req, ctx.res, { consent: { grantId: await grant.save() } }, { mergeWithLastSubmission: true });
});
provider.on('server_error', (_, e) => console.error(e));
provider.listen(Number(port), '127.0.0.1');
