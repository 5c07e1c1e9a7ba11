// SPDX-License-Identifier: Apache-2.0
// HTTP/2 server of Undertow without TLS: `java -cp … Peer.java server`. It answers `/bytes/N` with so many bytes, anything
// else with 404; otherwise as tests/support/http2_peers/__init__.py says.

import io.undertow.Undertow;
import io.undertow.UndertowOptions;
import io.undertow.server.handlers.BlockingHandler;
import java.net.InetSocketAddress;

public class Peer {
  public static void main(String[] arguments) throws Exception {
    Undertow server =
        Undertow.builder()
            .setServerOption(UndertowOptions.ENABLE_HTTP2, true)
            .addHttpListener(0, "127.0.0.1")
            .setHandler(
                new BlockingHandler(
                    exchange -> {
                      int received = exchange.getInputStream().readAllBytes().length;
                      String path = exchange.getRequestPath();
                      boolean known = path.startsWith("/bytes/");
                      int size = known ? Integer.parseInt(path.substring(7)) : 9;
                      exchange.setStatusCode(known ? 200 : 404);
                      System.out.printf(
                          "{\"method\":\"%s\",\"path\":\"%s\",\"host\":\"%s\",\"request_body\":%d,\"status\":%d,\"response_body\":%d}%n",
                          exchange.getRequestMethod(), path, exchange.getHostAndPort(), received, exchange.getStatusCode(), size);
                      exchange.getOutputStream().write(new byte[size]);
                      exchange.getOutputStream().close();
                    }))
            .build();
    server.start();
    int port = ((InetSocketAddress) server.getListenerInfo().get(0).getAddress()).getPort();
    System.out.printf("{\"port\":%d}%n", port);
    System.in.readAllBytes();
    System.exit(0);
  }
}
