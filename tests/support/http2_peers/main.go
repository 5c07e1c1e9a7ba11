// SPDX-License-Identifier: Apache-2.0

// HTTP/2 server (x/net h2c: prior knowledge and upgrade) and client (x/net) of Go, without TLS:
// `gopeer server` | `gopeer client PORT CONCURRENT < requests.json`.
// What is asked and answered: tests/support/http2_peers/__init__.py.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
)

var output sync.Mutex

func report(line any) {
	output.Lock()
	defer output.Unlock()
	text, _ := json.Marshal(line)
	fmt.Println(string(text))
}

type served struct {
	Method       string `json:"method"`
	Path         string `json:"path"`
	Host         string `json:"host"`
	RequestBody  int64  `json:"request_body"`
	Status       *int   `json:"status"`
	ResponseBody int    `json:"response_body"`
}

func serve(w http.ResponseWriter, r *http.Request) {
	received, _ := io.Copy(io.Discard, r.Body)
	status, size := 404, 9
	parts := strings.Split(r.URL.Path, "/")
	number := 0
	if len(parts) > 2 {
		number, _ = strconv.Atoi(parts[2])
	}
	switch parts[1] {
	case "status":
		status, size = number, 0
	case "bytes":
		status, size = 200, number
		w.Header().Add("Set-Cookie", "a="+r.URL.RawQuery)
	case "pieces":
		for rest := bytes.Repeat([]byte("p"), number); len(rest) > 0; w.(http.Flusher).Flush() {
			piece := rest
			if len(piece) > 100_000 {
				piece = piece[:100_000]
			}
			w.Write(piece)
			rest = rest[len(piece):]
		}
		status := 200
		report(served{r.Method, r.URL.Path, r.Host, received, &status, number})
		return
	case "trailers":
		status, size = 200, 10
		w.Header().Set("Trailer", "X-Checksum")
		defer w.Header().Set("X-Checksum", "abc")
	case "hints":
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(103)
		status, size = 200, 5
	case "reset":
		report(served{r.Method, r.URL.Path, r.Host, received, nil, 0})
		panic(http.ErrAbortHandler)
	}
	report(served{r.Method, r.URL.Path, r.Host, received, &status, size})
	w.WriteHeader(status)
	if size > 0 {
		w.Write(bytes.Repeat([]byte("b"), size))
	}
}

func server() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	report(map[string]int{"port": listener.Addr().(*net.TCPAddr).Port})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	http.Serve(listener, h2c.NewHandler(http.HandlerFunc(serve), &http2.Server{}))
}

type asked struct {
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Headers map[string]string `json:"headers"`
	Body    int               `json:"body"`
}

type answered struct {
	Path   string `json:"path"`
	Status *int   `json:"status"`
	Body   int64  `json:"body"`
}

func client(port string, concurrent int) {
	var requests []asked
	json.NewDecoder(os.Stdin).Decode(&requests)
	// One connection, whatever is asked at once.
	var one net.Conn
	var dialing sync.Mutex
	dial := func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
		dialing.Lock()
		defer dialing.Unlock()
		if one != nil {
			return nil, fmt.Errorf("a second connection")
		}
		connection, err := net.Dial(network, address)
		one = connection
		return connection, err
	}
	transport := &http2.Transport{AllowHTTP: true, DisableCompression: true, DialTLSContext: dial, StrictMaxConcurrentStreams: true}
	queue := make(chan asked)
	var workers sync.WaitGroup
	for i := 0; i < concurrent; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for request := range queue {
				report(ask(transport, port, request))
			}
		}()
	}
	for _, request := range requests {
		queue <- request
	}
	close(queue)
	workers.Wait()
}

func ask(transport http.RoundTripper, port string, request asked) answered {
	var body io.Reader
	if request.Body > 0 {
		body = bytes.NewReader(bytes.Repeat([]byte("q"), request.Body))
	}
	made, err := http.NewRequest(request.Method, "http://127.0.0.1:"+port+request.Path, body)
	if err != nil {
		panic(err)
	}
	for name, value := range request.Headers {
		made.Header.Set(name, value)
	}
	result := answered{Path: request.Path}
	response, err := transport.RoundTrip(made)
	if err != nil {
		return result
	}
	defer response.Body.Close()
	result.Status = &response.StatusCode
	result.Body, _ = io.Copy(io.Discard, response.Body)
	return result
}

func main() {
	if os.Args[1] == "server" {
		server()
	} else {
		concurrent, _ := strconv.Atoi(os.Args[3])
		client(os.Args[2], concurrent)
	}
}
