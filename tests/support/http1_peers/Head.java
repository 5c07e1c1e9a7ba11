// SPDX-License-Identifier: Apache-2.0
// Asks with HEAD, in Java's default way: with an upgrade to HTTP/2. Run: java Head.java URL

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Head {
    public static void main(String[] arguments) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
            .method("HEAD", HttpRequest.BodyPublishers.noBody()).build();
        HttpResponse<Void> answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.discarding());
        System.out.println(answer.version() + " " + answer.statusCode());
    }
}
