// Command load is both ends of the benchmark: the API that a relay asks, and the clients that ask the relay.
//
// Both are one process, so that an event can leave the one when the event before it has arrived at the other, and so
// that one clock stamps both. Its first line of output says where the API listens; after that it reads tasks, one JSON
// object per line, and answers each with one.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

type announcement struct {
	Port        int    `json:"port"`
	TLSPort     int    `json:"tls_port"`
	Certificate string `json:"certificate"`
}

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("usage: load FOLDER (where the certificate of the API is left)"))
	}
	said, err := serve(filepath.Join(os.Args[1], "ca.pem"))
	if err != nil {
		fail(err)
	}
	answers := json.NewEncoder(os.Stdout)
	answers.Encode(said)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked task
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			fail(err)
		}
		answers.Encode(asked.run())
	}
}

// serve listens with and without TLS, and leaves the authority's certificate at path.
func serve(path string) (announcement, error) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return announcement{}, err
	}
	encrypted, err := listenTLS(path)
	if err != nil {
		return announcement{}, err
	}
	go accept(plain)
	go accept(encrypted)
	return announcement{port(plain), port(encrypted), path}, nil
}

func accept(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			fail(err)
		}
		go answer(connection)
	}
}

func port(listener net.Listener) int {
	return listener.Addr().(*net.TCPAddr).Port
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
