// A TypeScript client that was not written here talks to a gateway: node client.mjs v1|v2|v2-auto|v2-pin URL TOKEN
// Prints one line a step and "N passed, M failed".
const [flavour, url, token] = process.argv.slice(2);
const requestInit = { headers: { Authorization: `Bearer ${token}` } };

async function make() {
  const info = { name: 'outside-client', version: '1.0.0' };
  if (flavour === 'v1') {
    const { Client } = await import('@modelcontextprotocol/sdk/client/index.js');
    const { StreamableHTTPClientTransport } = await import('@modelcontextprotocol/sdk/client/streamableHttp.js');
    return [new Client(info), new StreamableHTTPClientTransport(new URL(url), { requestInit })];
  }
  const { Client, StreamableHTTPClientTransport } = await import('@modelcontextprotocol/client');
  const mode = { 'v2-auto': 'auto', 'v2-pin': { pin: '2026-07-28' } }[flavour];
  const options = mode ? { versionNegotiation: { mode } } : {};
  return [new Client(info, options), new StreamableHTTPClientTransport(new URL(url), { requestInit })];
}

let passed = 0;
let failed = 0;
async function step(name, body) {
  try {
    const said = await body();
    console.log(`ok   ${flavour} ${name}: ${said}`);
    passed++;
  } catch (e) {
    console.log(`FAIL ${flavour} ${name}: ${String(e).slice(0, 300)}`);
    failed++;
  }
}
function must(cond, what) {
  if (!cond) throw new Error(what);
}

const [client, transport] = await make();
const sep = process.env.PREFIX ?? '';
await step('connect', async () => {
  await client.connect(transport);
  return client.getServerVersion()?.name;
});
await step('tools/list shows only what alice may call', async () => {
  const names = (await client.listTools()).tools.map((t) => t.name).sort();
  const want = JSON.parse(process.env.WANT_TOOLS);
  must(JSON.stringify(names) === JSON.stringify(want), `got ${names}`);
  return names.join(' ');
});
await step('an allowed call answers', async () => {
  const r = await client.callTool({ name: `${sep}echo`, arguments: { message: 'hi' } });
  must(!r.isError && JSON.stringify(r.content).includes('hi'), JSON.stringify(r));
  return 'hi';
});
await step('progress arrives while a slow tool works', async () => {
  let seen = 0;
  const opts = { onprogress: () => seen++ };
  const call = { name: `${sep}slow`, arguments: { steps: 3, seconds: 0.3 } };
  const r = flavour === 'v1' ? await client.callTool(call, undefined, opts) : await client.callTool(call, opts);
  must(!r.isError && seen > 0, `${seen} notifications, ${JSON.stringify(r)}`);
  return `${seen} notifications`;
});
await step('a hidden tool looks unknown', async () => {
  try {
    const r = await client.callTool({ name: process.env.HIDDEN_TOOL ?? 'refund', arguments: {} });
    must(false, `answered ${JSON.stringify(r)}`);
  } catch (e) {
    must(e.code === -32602, String(e));
    return e.code;
  }
});
await step('close', async () => {
  await transport.terminateSession?.();
  await client.close();
  return 'closed';
});
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
