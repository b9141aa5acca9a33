// The TypeScript SDK logs in by itself: node oauth.mjs URL ISSUER TOKENS
// It is led by nothing but the gateway's URL: the challenge names the gateway's document, that the issuer, and the issuer
// gives a token. ISSUER is only whom a program expects to give its credentials to. What tokens it got goes into the file TOKENS. It prints one line a step and "N passed, M failed". After
// the line "logged in" it waits for a line, before which somebody has ended the issuer.
import { writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js';
import { ClientCredentialsProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const [url, expectedIssuer, tokenFile] = process.argv.slice(2);
const callback = 'http://127.0.0.1:9/callback';
const seen = [];

let passed = 0;
let failed = 0;
async function step(name, body) {
  try {
    console.log(`ok   oauth ${name}: ${await body()}`);
    passed++;
  } catch (e) {
    console.log(`FAIL oauth ${name}: ${String(e?.stack ?? e).slice(0, 600)}`);
    failed++;
  }
}
function must(cond, what) {
  if (!cond) throw new Error(what);
}

// person is somebody with a browser that keeps cookies and clicks on nothing.
function person(name) {
  const cookies = new Map();
  return {
    logins: [],
    redirectUrl: callback,
    clientMetadata: { client_name: 'outside', redirect_uris: [callback], token_endpoint_auth_method: 'none' },
    clientInformation: () => ({ client_id: 'outside' }),
    state: () => 'state-of-the-test',
    tokens() {
      return this.kept;
    },
    saveTokens(t) {
      this.kept = t;
      seen.push(t.access_token);
    },
    codeVerifier() {
      return this.verifier;
    },
    saveCodeVerifier(v) {
      this.verifier = v;
    },
    async redirectToAuthorization(start) {
      let at = new URL(start);
      this.logins.push({ scope: at.searchParams.get('scope'), resource: at.searchParams.get('resource') });
      at.searchParams.set('login_hint', name);
      for (let hop = 0; hop < 12 && !at.href.startsWith(callback); hop++) {
        const cookie = [...cookies].map((c) => c.join('=')).join('; ');
        const res = await fetch(at, { redirect: 'manual', headers: { cookie } });
        for (const line of res.headers.getSetCookie()) {
          const [pair] = line.split(';');
          const eq = pair.indexOf('=');
          cookies.set(pair.slice(0, eq), pair.slice(eq + 1));
        }
        const next = res.headers.get('location');
        must(next, `the issuer answers ${res.status}: ${(await res.text()).slice(0, 200)}`);
        at = new URL(next, at);
      }
      this.code = at.searchParams.get('code');
      must(this.code && at.searchParams.get('state') === 'state-of-the-test', `the issuer sent back ${at.search}`);
    },
  };
}

// session connects as somebody, and logs in whenever it is sent to.
async function session(authProvider) {
  const info = { name: 'outside-oauth', version: '1.0.0' };
  let transport;
  let client;
  const open = async () => {
    transport = new StreamableHTTPClientTransport(new URL(url), { authProvider });
    client = new Client(info);
    await client.connect(transport);
  };
  const loggedIn = async (deed) => {
    try {
      return await deed();
    } catch (e) {
      if (!(e instanceof UnauthorizedError) || !authProvider.code) throw e;
      await transport.finishAuth(authProvider.code);
      authProvider.code = undefined;
      return deed();
    }
  };
  await loggedIn(open);
  return { client: () => client, call: (name) => loggedIn(() => client.callTool({ name, arguments: {} })), open };
}
const text = (r) => {
  must(!r.isError && r.content?.length > 0, JSON.stringify(r));
  return r.content[0].type;
};

const alice = person('alice');
let s;
await step('the gateway says where to log in, and for what', async () => {
  s = await session(alice);
  const [first] = alice.logins;
  must(alice.logins.length === 1 && first.resource === url, JSON.stringify(alice.logins));
  must(first.scope.split(' ').filter((x) => x !== 'offline_access').join(' ') === 'mcp tools:read', first.scope);
  return first.scope;
});
await step('a call answers', async () => text(await s.call('test_simple_text')));
await step('a call that needs more asks for more, once', async () => {
  const r = await s.call('test_image_content');
  must(alice.logins.length === 2 && alice.logins[1].scope.includes('tools:write') && alice.logins[1].scope.includes('tools:read'), JSON.stringify(alice.logins));
  return `${text(r)} with ${alice.logins[1].scope}`;
});
await step('the new token is as good as the old one was', async () => {
  const r = await s.call('test_simple_text');
  must(alice.logins.length === 2, 'logged in again');
  return text(r);
});
await step('somebody without a grant is not sent for scopes that would not help', async () => {
  const bob = person('bob');
  try {
    await session(bob);
  } catch (e) {
    must(bob.logins.length === 1 && /unknown server/i.test(String(e)), String(e));
    return String(e.message).slice(0, 60);
  }
  throw new Error('bob was let in');
});
await step('a program logs in with its own credentials', async () => {
  const robot = new ClientCredentialsProvider({ clientId: 'robot', clientSecret: 'robot-secret', scope: 'mcp tools:read', expectedIssuer });
  const save = robot.saveTokens.bind(robot);
  robot.saveTokens = (t) => {
    seen.push(t.access_token);
    save(t);
  };
  const r = await session(robot);
  return text(await r.call('test_simple_text'));
});

writeFileSync(tokenFile, seen.join('\n'));
console.log('logged in');
await new Promise((resolve) => createInterface({ input: process.stdin }).once('line', resolve));

await step('calls go on while the issuer is gone', async () => text(await s.call('test_simple_text')));
await step('and so do new sessions', async () => {
  const again = await session({ ...person('alice'), kept: alice.kept });
  return text(await again.call('test_image_content'));
});
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
