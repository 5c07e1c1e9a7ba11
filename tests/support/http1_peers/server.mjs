// SPDX-License-Identifier: Apache-2.0
// A server whose last path segment says how to answer. Prints its port, then one JSON line a request: what it read and wrote.
import http from 'node:http';
import net from 'node:net';

const hello = 'hello\n';

function report(request, status, received, sent) {
  console.log(JSON.stringify({
    method: request.method, target: request.url, host: request.headers.host ?? null, status, received, sent,
  }));
}

function answer(request, response) {
  let received = 0;
  let sent = 0;
  const send = (text) => { if (request.method !== 'HEAD') sent += text.length; return text; };
  response.on('close', () => report(request, response.statusCode, received, sent));
  const what = request.url.split('?')[0].split('/').pop();
  if (what === 'early') {
    response.writeHead(413, { 'content-length': 5 });
    response.end(send('large'));
  }
  if (what === 'abandoned') {
    request.socket.destroySoon();
    return;
  }
  request.on('data', (part) => { received += part.length; });
  request.on('end', () => {
    switch (what) {
      case 'early':
        return;
      case 'chunked':
        response.write(send('a'.repeat(1000)));
        setImmediate(() => { response.write(send('b'.repeat(3))); response.end(); });
        return;
      case 'empty-chunked':
        response.flushHeaders();
        setImmediate(() => response.end());
        return;
      case 'trailers':
        response.setHeader('Trailer', 'X-Sum');
        response.write(send('content'));
        response.addTrailers({ 'X-Sum': '7', 'X-More': 'm'.repeat(200) });
        response.end();
        return;
      case 'hints':
        response.writeEarlyHints({ link: '</style.css>; rel=preload' }, () => response.end(send(hello)));
        return;
      case 'processing':
        response.writeProcessing();
        response.writeProcessing();
        response.end(send(hello));
        return;
      case 'large-head':
        response.setHeader('X-Large', 'v'.repeat(40000));
        response.end(send(hello));
        return;
      case 'until-close':
        response.useChunkedEncodingByDefault = false;
        response.removeHeader('connection');
        response.shouldKeepAlive = false;
        response.write(send('first '));
        setImmediate(() => response.end(send('second')));
        return;
      case '204': case '304':
        response.writeHead(Number(what));
        response.end();
        return;
      default:
        response.end(send(hello));
    }
  });
}

const server = http.createServer({ maxHeaderSize: 65536 }, answer);
server.on('checkContinue', (request, response) => {
  if (request.url.endsWith('/refused')) {
    response.on('close', () => report(request, 417, 0, 0));
    response.writeHead(417, { 'content-length': 0, connection: 'close' });
    response.end();
  } else {
    response.writeContinue();
    answer(request, response);
  }
});
server.on('upgrade', (request, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n');
  report(request, 101, 0, 0);
  socket.on('data', (frame) => socket.write(frame));
  socket.on('end', () => socket.end());
});
server.on('connect', (request, socket, head) => {
  const [host, port] = request.url.split(':');
  const target = net.connect(Number(port), host, () => {
    socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
    report(request, 200, 0, 0);
    target.write(head);
    target.pipe(socket);
    socket.pipe(target);
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
