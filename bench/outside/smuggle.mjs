// A server of one of the TypeScript SDKs with two tools, allowed and denied, that counts what it is made to do.
//   node smuggle.mjs v1|v2 PORT      GET /counts says how often each tool ran
import { createServer } from 'node:http';
import { z } from 'zod';

const [flavour, port] = process.argv.slice(2);
const counts = { allowed: 0, denied: 0 };

function fill(server, object) {
  for (const name of ['allowed', 'denied']) {
    server.registerTool(name, { description: name, inputSchema: object, annotations: { readOnlyHint: true } }, async () => {
      counts[name]++;
      return { content: [{ type: 'text', text: name }] };
    });
  }
  return server;
}

async function body(req) {
  const parts = [];
  for await (const part of req) parts.push(part);
  return Buffer.concat(parts);
}

// v2 takes the bytes as they came and reads them itself, in either era.
async function v2() {
  const { McpServer, createMcpHandler } = await import('@modelcontextprotocol/server');
  const handler = createMcpHandler(() => fill(new McpServer({ name: 'ts', version: '2' }), z.looseObject({})));
  return async (req, res) => {
    const bytes = await body(req);
    const request = new Request(`http://${req.headers.host}${req.url}`, {
      method: req.method, headers: req.headers, body: bytes.length > 0 ? bytes : undefined,
    });
    const answer = await handler.fetch(request);
    res.writeHead(answer.status, Object.fromEntries(answer.headers));
    if (answer.body) for await (const chunk of answer.body) res.write(chunk);
    res.end();
  };
}

// v1 is stateless, one server for each request.
async function v1() {
  const { McpServer } = await import('@modelcontextprotocol/sdk/server/mcp.js');
  const { StreamableHTTPServerTransport } = await import('@modelcontextprotocol/sdk/server/streamableHttp.js');
  return async (req, res) => {
    const server = fill(new McpServer({ name: 'ts', version: '1' }), {});
    const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
    res.on('close', () => { transport.close(); server.close(); });
    await server.connect(transport);
    await transport.handleRequest(req, res);
  };
}

const serve = await { v1, v2 }[flavour]();
createServer((req, res) => {
  if (req.url === '/counts') {
    res.end(JSON.stringify(counts));
    return;
  }
  serve(req, res).catch((err) => {
    console.error(err);
    if (!res.headersSent) res.writeHead(500);
    res.end();
  });
}).listen(Number(port), '127.0.0.1');
