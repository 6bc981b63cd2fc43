package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

var (
	boundary    = []byte("\n\n")
	names       atomic.Int64
	token       = os.Getenv("TOKEN")
	errPatience = errors.New("the end did not come in time")
)

// A client asks one relay, over one connection as long as that is kept.
type client struct {
	task       *task
	other      bool // reads a stream that another client has asked for
	connection net.Conn
	reader     *bufio.Reader
}

// A refusal is an answer with another status than 200.
type refusal string

func (r refusal) Error() string { return string(r) }

// A reading is what came of one stream.
type reading struct {
	stream *stream
	began  time.Time
	first  time.Duration // until the first event
	got    int64
	ended  bool
	after  int64   // events that left before it are not timed
	delays []int64 // nanoseconds from leaving the API to arriving here
	seen   func()  // called after each event
}

func newStream(t *task) *stream {
	made := &stream{
		name:   fmt.Sprintf("stream-%d", names.Add(1)),
		events: t.Events,
		until:  time.Now().Add(seconds(t.Seconds)),
		gone:   make(chan struct{}),
	}
	if t.Ahead > 0 {
		made.ahead, made.lock = t.Ahead, make(chan struct{}, 16)
	}
	if t.Rate > 0 {
		made.gap = time.Duration(float64(time.Second) / t.Rate)
	}
	streams.Store(made.name, made)
	return made
}

// post asks for a stream and reads it to its end.
func (c *client) post(r *reading) error {
	body := `{"model":"` + c.task.Model + `","messages":[{"role":"user","content":"` + r.stream.name + `"}],"stream":true` +
		c.task.Members + `}`
	head := "POST " + c.task.Path + " HTTP/1.1\r\nHost: " + c.task.Address + "\r\nAuthorization: Bearer " + token + "\r\n" +
		"Accept: text/event-stream\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n"
	if c.task.Retained {
		head += "Idempotency-Key: " + r.stream.name + "\r\n"
	}
	return c.exchange(head+"\r\n"+body, r, c.task.Readers > 1)
}

// get reads what another client has asked for.
func (c *client) get(path string, r *reading) error {
	return c.exchange("GET "+path+" HTTP/1.1\r\nHost: "+c.address()+"\r\nAuthorization: Bearer "+token+"\r\n\r\n", r, false)
}

func (c *client) exchange(request string, r *reading, shared bool) error {
	if c.connection == nil {
		connection, err := net.Dial("tcp", c.address())
		if err != nil {
			return err
		}
		c.connection, c.reader = connection, bufio.NewReaderSize(connection, 16<<10)
	}
	r.began = time.Now()
	c.connection.SetDeadline(r.stream.until.Add(seconds(c.task.Patience)))
	if _, err := io.WriteString(c.connection, request); err != nil {
		c.close()
		return inTime(err)
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		c.close()
		return inTime(err)
	}
	defer func() {
		if response.Close {
			c.close()
		}
	}()
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 300))
		c.close()
		return refusal(fmt.Sprintf("status %d: %s", response.StatusCode, said))
	}
	var second chan error
	if shared {
		second = c.another(c.task.follow(response.Header.Get("X-Stream-Id")), r)
	}
	err = r.read(response.Body, c.task)
	if second != nil && err == nil {
		err = <-second
	}
	if err != nil {
		c.close()
		return inTime(err)
	}
	return nil
}

// another lets a second reader follow the same stream.
func (c *client) another(path string, r *reading) chan error {
	done := make(chan error, 1)
	go func() {
		other := client{task: c.task, other: true}
		defer other.close()
		done <- other.get(path, &reading{stream: r.stream, seen: r.seen})
	}()
	return done
}

// address is where the client asks: readers of other clients' streams may have a worker of their own.
func (c *client) address() string {
	if c.other && c.task.Others != "" {
		return c.task.Others
	}
	return c.task.Address
}

// follow is the path of the stream with this id for those who have not asked for it.
func (t *task) follow(id string) string {
	if t.Follow == "" {
		return "/v1/streams/" + id + "?format=openai"
	}
	return strings.ReplaceAll(t.Follow, "{id}", id)
}

func (c *client) close() {
	if c.connection != nil {
		c.connection.Close()
		c.connection = nil
	}
}

// read reads events to the end of the response. Its error says what was lost or garbled.
func (r *reading) read(body io.Reader, asked *task) error {
	buffer := make([]byte, 0, 16<<10)
	for {
		if len(buffer) == cap(buffer) {
			buffer = append(buffer, make([]byte, len(buffer))...)[:len(buffer)]
		}
		n, err := body.Read(buffer[len(buffer):cap(buffer)])
		buffer = buffer[:len(buffer)+n]
		arrived, rest := now(), buffer
		for {
			at := bytes.Index(rest, boundary)
			if at < 0 {
				break
			}
			if wrong := r.event(rest[:at], arrived, asked); wrong != nil {
				return wrong
			}
			rest = rest[at+2:]
		}
		buffer = buffer[:copy(buffer, rest)]
		if err == io.EOF {
			return r.complete(len(buffer))
		}
		if err != nil {
			return err
		}
	}
}

// event takes one event: a piece of content, or one of those around them.
func (r *reading) event(event []byte, arrived int64, asked *task) error {
	at := bytes.IndexByte(event, '@')
	if at < 0 || asked.Piece != "" && !bytes.Contains(event, []byte(asked.Piece)) {
		if bytes.Contains(event, []byte(`"error"`)) {
			return fmt.Errorf("an error came: %.200s", event)
		}
		r.ended = r.ended || bytes.Contains(event, []byte(asked.End))
		return nil
	}
	place, rest := number(event[at+1:])
	left, _ := number(rest)
	if place != r.got+1 {
		return fmt.Errorf("event %d came after event %d", place, r.got)
	}
	if r.got == 0 {
		r.first = time.Since(r.began)
	}
	r.got = place
	if left > r.after && r.stream.asked.Load() {
		r.delays = append(r.delays, arrived-left)
	}
	if r.seen != nil {
		r.seen()
	}
	return nil
}

// complete says what is wrong with a response that has ended.
func (r *reading) complete(left int) error {
	switch {
	case left > 0:
		return fmt.Errorf("the response ends within an event")
	case !r.ended:
		return fmt.Errorf("the response ends after %d events without its end", r.got)
	case r.stream.asked.Load() && r.got != r.stream.sent.Load():
		return fmt.Errorf("%d of %d events came", r.got, r.stream.sent.Load())
	}
	return nil
}

// number reads the digits before an `@`, and gives what is behind it.
func number(data []byte) (int64, []byte) {
	var value int64
	for i, digit := range data {
		if digit < '0' || digit > '9' {
			return value, data[i+1:]
		}
		value = value*10 + int64(digit-'0')
	}
	return value, nil
}

func inTime(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return errPatience
	}
	return err
}

func seconds(value float64) time.Duration {
	return time.Duration(value * float64(time.Second))
}
