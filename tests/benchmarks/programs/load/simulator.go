package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A stream is one answer of the API, known by the message it answers. Its client has the same value: that is how the
// two ends speak to each other past the relay.
type stream struct {
	name   string
	events int           // how many at most
	until  time.Time     // no event leaves after it
	gap    time.Duration // between two events; 0: as fast as it goes
	ahead  int           // how many may have left and not arrived; 0: any number
	lock   chan struct{} // a token for each batch that has arrived, or nil

	asked atomic.Bool   // the request has come
	sent  atomic.Int64  // events that have left
	gone  chan struct{} // closed when the API is done with it, or its connection is
}

var (
	streams sync.Map // of *stream, by name
	began   = time.Now()
)

// now is in nanoseconds of a clock that never goes back.
func now() int64 { return int64(time.Since(began)) }

const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n" +
	"Transfer-Encoding: chunked\r\n\r\n"

// answer answers the requests of one connection.
func answer(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 4096)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		var body struct {
			Messages []struct {
				Content string `json:"content"`
			} `json:"messages"`
			StreamOptions struct {
				IncludeUsage bool `json:"include_usage"`
			} `json:"stream_options"`
		}
		err = json.NewDecoder(request.Body).Decode(&body)
		io.Copy(io.Discard, request.Body)
		var found any
		if len(body.Messages) > 0 {
			found, _ = streams.Load(body.Messages[len(body.Messages)-1].Content)
		}
		if err != nil || found == nil {
			const refused = `{"error":{"message":"nobody waits for it","type":"invalid_request_error"}}`
			fmt.Fprintf(connection, "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n"+
				"Content-Length: %d\r\n\r\n%s", len(refused), refused)
			continue
		}
		each := found.(*stream)
		if !each.asked.CompareAndSwap(false, true) {
			return // it is asked twice: what its client gets will show it
		}
		if each.answer(connection, reader, body.StreamOptions.IncludeUsage) != nil {
			return
		}
	}
}

// answer writes the events, each with one write, and returns when the next request has come.
func (s *stream) answer(connection net.Conn, reader *bufio.Reader, usage bool) error {
	peeked := make(chan error, 1)
	left := make(chan struct{})
	go func() {
		_, err := reader.Peek(1) // the next request, or the end of the connection
		if err != nil {
			close(left)
		}
		peeked <- err
	}()
	err := s.write(connection, left, usage)
	close(s.gone)
	if err != nil {
		connection.Close()
	}
	return <-peeked
}

func (s *stream) write(connection io.Writer, left <-chan struct{}, usage bool) error {
	buffer := make([]byte, 0, 1024)
	role := chunk(nil, `[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]`)
	if _, err := connection.Write(framed([]byte(head), role)); err != nil {
		return err
	}
	scratch := make([]byte, 0, 512)
	for place := 1; place <= s.events; place++ {
		if err := s.wait(place, left); err != nil {
			return err
		}
		if !time.Now().Before(s.until) {
			break
		}
		scratch = event(scratch[:0], place)
		buffer = framed(buffer[:0], scratch)
		s.sent.Add(1) // before it can arrive
		if _, err := connection.Write(buffer); err != nil {
			return err
		}
	}
	buffer = framed(buffer[:0], chunk(nil, `[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]`))
	if usage {
		buffer = framed(buffer, s.usage())
	}
	buffer = framed(buffer, []byte("data: [DONE]\n\n"))
	_, err := connection.Write(append(buffer, "0\r\n\r\n"...))
	return err
}

// wait returns when the event of this place may leave.
func (s *stream) wait(place int, left <-chan struct{}) error {
	var pause <-chan time.Time
	switch {
	case place == 1:
		return nil
	case s.lock != nil && place > s.ahead && (place-1)%s.batch() == 0:
	case s.gap > 0:
		timer := time.NewTimer(s.gap)
		defer timer.Stop()
		pause = timer.C
	default:
		return nil
	}
	select {
	case <-s.lock:
	case <-pause:
	case <-left:
		return io.ErrClosedPipe
	}
	return nil
}

// batch is how many events share a token.
func (s *stream) batch() int {
	return max(s.ahead/10, 1)
}

// event is the chunk of a piece of content, which says its place in the stream and when it left: `@place@time@`.
func event(data []byte, place int) []byte {
	data = opening(data)
	data = append(data, `[{"index":0,"delta":{"content":"@`...)
	data = strconv.AppendInt(data, int64(place), 10)
	data = append(data, '@')
	data = strconv.AppendInt(data, now(), 10)
	return append(data, "@\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n"...)
}

func chunk(data []byte, choices string) []byte {
	return append(append(opening(data), choices...), "}\n\n"...)
}

func (s *stream) usage() []byte {
	const counted = `[],"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}`
	sent := s.sent.Load()
	return chunk(nil, fmt.Sprintf(counted, sent, sent+9))
}

func opening(data []byte) []byte {
	data = append(data, `data: {"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk",`...)
	data = append(data, `"created":1741570283,"model":"gpt-4o-mini-2024-07-18",`...)
	return append(data, `"service_tier":"default","system_fingerprint":"fp_06737a9306","choices":`...)
}

// framed appends data as a chunk of the chunked coding.
func framed(buffer, data []byte) []byte {
	buffer = strconv.AppendInt(buffer, int64(len(data)), 16)
	buffer = append(buffer, "\r\n"...)
	return append(append(buffer, data...), "\r\n"...)
}
