// SPDX-License-Identifier: Apache-2.0

// Command peer is Go's net/http as a server (no arguments: prints its port, then one JSON line a request) or as a client
// (arguments: base URL and name; makes a fixed list of requests and prints one JSON line each).
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"
)

type said struct {
	Method   string `json:"method"`
	Target   string `json:"target"`
	Host     string `json:"host"`
	Status   int    `json:"status"`
	Received int64  `json:"received"`
	Sent     int    `json:"sent"`
}

var printing sync.Mutex

func say(s said) {
	printing.Lock()
	defer printing.Unlock()
	line, _ := json.Marshal(s)
	fmt.Println(string(line))
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := said{Method: r.Method, Target: r.RequestURI, Host: r.Host, Status: 200}
		if path.Base(r.URL.Path) != "early" {
			s.Received, _ = io.Copy(io.Discard, r.Body)
		}
		write := func(text string) {
			n, _ := io.WriteString(w, text)
			if r.Method != "HEAD" {
				s.Sent += n
			}
		}
		switch path.Base(r.URL.Path) {
		case "chunked":
			for i := 0; i < 3; i++ {
				write(strings.Repeat("c", 500))
				w.(http.Flusher).Flush()
			}
		case "trailers":
			w.Header().Set("Trailer", "X-Sum")
			write("content")
			w.(http.Flusher).Flush()
			w.Header().Set("X-Sum", "7")
		case "hints":
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(103)
			write("hello\n")
		case "large":
			w.Header().Set("Content-Length", "1000000")
			write(strings.Repeat("l", 1000000))
		case "204":
			s.Status = 204
			w.WriteHeader(204)
		case "early":
			s.Status = 403
			w.WriteHeader(403)
			write("no\n")
		default:
			write("hello\n")
		}
		say(s)
	}))
}

func ask(base, name string) {
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: 5 * time.Second}}
	type one struct {
		method, path string
		body         []byte
		chunked      bool
		expect       bool
	}
	large := bytes.Repeat([]byte("u"), 200000)
	for _, o := range []one{
		{"GET", "plain", nil, false, false},
		{"GET", "plain", nil, false, false},
		{"HEAD", "plain", nil, false, false},
		{"GET", "chunked", nil, false, false},
		{"GET", "trailers", nil, false, false},
		{"GET", "hints", nil, false, false},
		{"GET", "204", nil, false, false},
		{"POST", "upload", []byte("small"), false, false},
		{"PUT", "upload", large, false, false},
		{"POST", "upload", large[:3000], true, false},
		{"POST", "upload", large[:50000], false, true},
		{"GET", "large", nil, false, false},
		{"PURGE", "plain", nil, false, false},
	} {
		var body io.Reader
		if o.chunked {
			body = io.MultiReader(bytes.NewReader(o.body))
		} else if o.body != nil {
			body = bytes.NewReader(o.body)
		}
		request, err := http.NewRequest(o.method, base+"/"+name+"/"+o.path+"?q=1", body)
		if err != nil {
			panic(err)
		}
		if o.expect {
			request.Header.Set("Expect", "100-continue")
		}
		response, err := client.Do(request)
		if err != nil {
			panic(err)
		}
		received, _ := io.Copy(io.Discard, response.Body)
		response.Body.Close()
		say(said{o.method, request.URL.RequestURI(), request.Host, response.StatusCode, received, len(o.body)})
	}
}

func main() {
	if len(os.Args) > 2 {
		ask(os.Args[1], os.Args[2])
	} else {
		serve()
	}
}
