// SPDX-License-Identifier: Apache-2.0
// HTTP/2 server and client of Node: `node peer.js server` | `node peer.js client PORT CONCURRENT < requests.json`.
// What is asked and answered: tests/support/http2_peers/__init__.py.
'use strict';
const http2 = require('node:http2');

function report(line) {
  process.stdout.write(JSON.stringify(line) + '\n');
}

function serve() {
  // Ten answers of 2 MB at once are more than the 10 MB that a session may hold by default.
  const server = http2.createServer({ maxSessionMemory: 100 });
  server.on('stream', (stream, headers) => {
    let received = 0;
    const [path, query] = headers[':path'].split('?');
    const answer = (status, body, more = {}, trailers = null) => {
      report({ method: headers[':method'], path, host: headers[':authority'], request_body: received, status, response_body: body });
      const fields = { ':status': status, 'x-served-by': 'node', ...more };
      if (!body && !trailers) return stream.respond(fields, { endStream: true });
      if (!trailers) {
        stream.respond(fields);
        return stream.end(Buffer.alloc(body, 'b'));
      }
      stream.respond(fields, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers(trailers));
      stream.end(Buffer.alloc(body, 'b'));
    };
    stream.on('error', () => {});
    stream.on('data', (chunk) => { received += chunk.length; });
    stream.on('end', () => {
      if (stream.destroyed) return;
      const [, kind, value] = path.split('/');
      if (kind === 'status') answer(Number(value), 0);
      else if (kind === 'bytes') answer(200, Number(value), { 'set-cookie': ['a=' + query, 'b=2'] });
      else if (kind === 'trailers') answer(200, 10, {}, { 'x-checksum': 'abc' });
      else if (kind === 'hints') {
        stream.additionalHeaders({ ':status': 103, link: '</a.css>; rel=preload' });
        answer(200, 5);
      } else if (kind === 'push') {
        stream.pushStream({ ':path': '/pushed?x' }, (error, pushed, pushedHeaders) => {
          if (error) throw error;
          report({ method: 'GET', path: '/pushed', host: pushedHeaders[':authority'], request_body: 0, status: 200, response_body: 7 });
          pushed.respond({ ':status': 200 });
          pushed.end('pushed!');
          answer(200, 3);
        });
      } else if (kind === 'reset') {
        report({ method: headers[':method'], path, host: headers[':authority'], request_body: received, status: null, response_body: 0 });
        stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR);
      } else answer(404, 9);
    });
  });
  server.listen(0, '127.0.0.1', () => report({ port: server.address().port }));
  process.stdin.resume().on('end', () => process.exit(0));
}

function ask(session, request) {
  return new Promise((resolve) => {
    const result = { path: request.path, status: null, body: 0 };
    const fields = { ':method': request.method, ':path': request.path, ...request.headers };
    const stream = session.request(fields, { endStream: !request.body });
    stream.on('response', (headers) => { result.status = headers[':status']; });
    stream.on('data', (chunk) => { result.body += chunk.length; });
    stream.on('error', () => {});
    stream.on('close', () => resolve(result));
    if (request.body) stream.end(Buffer.alloc(request.body, 'q'));
  });
}

async function client(port, concurrent) {
  let text = '';
  for await (const chunk of process.stdin) text += chunk;
  const requests = JSON.parse(text);
  const session = http2.connect(`http://127.0.0.1:${port}`);
  session.on('stream', (pushed) => pushed.resume());
  let next = 0;
  const worker = async () => {
    while (next < requests.length) report(await ask(session, requests[next++]));
  };
  await Promise.all(Array.from({ length: concurrent }, worker));
  session.close();
}

if (process.argv[2] === 'server') serve();
else client(Number(process.argv[3]), Number(process.argv[4]));
