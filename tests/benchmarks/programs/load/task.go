package main

import (
	"errors"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// A task is what is measured of one relay.
type task struct {
	Address  string  `json:"address"`
	Path     string  `json:"path"`
	Model    string  `json:"model"`
	Members  string  `json:"members"`  // further members of the request's body: `,"name":value`
	End      string  `json:"end"`      // what the last event of a stream holds
	Streams  int     `json:"streams"`  // at the same time
	Events   int     `json:"events"`   // of one stream, at most
	Seconds  float64 `json:"seconds"`  // of one stream, at most; of all, where they are repeated
	Rate     float64 `json:"rate"`     // events a second; 0: as fast as it goes
	Ahead    int     `json:"ahead"`    // events that may have left and not arrived; 0: any number
	Repeat   bool    `json:"repeat"`   // one stream after the other, over the same connections
	Ramp     float64 `json:"ramp"`     // seconds in which the streams begin, one after the other; not timed
	Retained bool    `json:"retained"` // asked for with an Idempotency-Key
	Readers  int     `json:"readers"`  // of each stream
	Others   string  `json:"others"`   // where its other readers read; empty: at the same address
	Follow   string  `json:"follow"`   // the path at which they do, with {id} for the stream's
	Piece    string  `json:"piece"`    // what an event with a piece of content holds besides an @, and no other event does
	Leave    bool    `json:"leave"`    // all leave in the end, at once, and a new stream is timed
	Patience float64 `json:"patience"` // seconds a stream may take beyond its own
}

type outcome struct {
	Streams    int      `json:"streams"` // that came whole
	Events     int64    `json:"events"`  // that arrived
	Seconds    float64  `json:"seconds"`
	P50        float64  `json:"p50"` // microseconds from leaving the API to arriving at the client
	P99        float64  `json:"p99"`
	First      float64  `json:"first"`      // microseconds to the first event, in the median; after all have left: of the next stream
	Unfinished int      `json:"unfinished"` // streams whose end did not come in time
	Refused    int      `json:"refused"`    // streams that were answered with another status than 200
	Refusal    string   `json:"refusal"`    // what one of them said
	Released   float64  `json:"released"`   // milliseconds until the last request upstream was given up after all had left; -1: never
	Problems   []string `json:"problems"`   // what was lost or garbled
}

type result struct {
	sync.Mutex
	outcome
	delays, firsts []int64
}

func (t *task) run() outcome {
	var all result
	all.Problems = []string{}
	begin := time.Now()
	if t.Leave {
		t.vanish(&all)
	} else {
		t.clients(&all, begin)
	}
	all.Seconds = time.Since(begin).Seconds()
	all.P50, all.P99 = percentile(all.delays, 0.5), percentile(all.delays, 0.99)
	if !t.Leave {
		all.First = percentile(all.firsts, 0.5)
	}
	return all.outcome
}

func (t *task) clients(all *result, begin time.Time) {
	var running sync.WaitGroup
	for number := 0; number < t.Streams; number++ {
		running.Add(1)
		go func(delay time.Duration) {
			defer running.Done()
			time.Sleep(delay)
			each := client{task: t}
			defer each.close()
			for more := true; more; more = t.Repeat && time.Since(begin) < seconds(t.Seconds) {
				if all.add(each.once(begin)) != nil {
					return
				}
			}
		}(seconds(t.Ramp * float64(number) / float64(t.Streams)))
	}
	running.Wait()
}

// once is one stream, from the request to the end.
func (c *client) once(begin time.Time) (*reading, error) {
	made := newStream(c.task)
	defer streams.Delete(made.name)
	if !c.task.Repeat {
		made.until = begin.Add(seconds(c.task.Seconds))
	} else {
		made.until = time.Now().Add(time.Hour)
	}
	r := &reading{stream: made}
	if c.task.Ramp > 0 {
		r.after = int64(begin.Sub(began) + seconds(c.task.Ramp))
	}
	if made.lock != nil {
		r.seen = made.step(max(c.task.Readers, 1))
	}
	return r, c.post(r)
}

// step gives the function that is called for each event that a reader has got, and lets others leave.
func (s *stream) step(readers int) func() {
	var arrived atomic.Int64
	return func() {
		if arrived.Add(1)%int64(readers*s.batch()) != 0 {
			return
		}
		select {
		case s.lock <- struct{}{}:
		default: // nobody waits: a server that makes its events itself
		}
	}
}

func (all *result) add(r *reading, err error) error {
	all.Lock()
	defer all.Unlock()
	all.Events += r.got
	all.delays = append(all.delays, r.delays...)
	if r.got > 0 {
		all.firsts = append(all.firsts, int64(r.first))
	}
	var refused refusal
	switch {
	case err == nil:
		all.Streams++
	case errors.Is(err, errPatience):
		all.Unfinished++
	case errors.As(err, &refused):
		all.Refused++
		all.Refusal = err.Error()
	case len(all.Problems) < 3:
		all.Problems = append(all.Problems, err.Error())
	}
	return err
}

// vanish opens streams, closes all their connections at once, and times the first event of the next one.
func (t *task) vanish(all *result) {
	clients, open := make([]client, t.Streams), make([]*stream, t.Streams)
	var ready, running sync.WaitGroup
	ready.Add(t.Streams)
	running.Add(t.Streams)
	for i := range clients {
		clients[i], open[i] = client{task: t}, newStream(t)
		go func(i int) {
			defer running.Done()
			time.Sleep(seconds(t.Ramp * float64(i) / float64(t.Streams)))
			var once sync.Once
			r := &reading{stream: open[i], seen: func() { once.Do(ready.Done) }}
			clients[i].post(r)
			once.Do(ready.Done)
			all.Lock()
			all.Events += r.got
			if r.got == 0 {
				all.Unfinished++
			}
			all.Unlock()
		}(i)
	}
	ready.Wait()
	left := time.Now()
	for i := range clients {
		if clients[i].connection != nil {
			clients[i].connection.Close()
		}
	}
	t.next(all)
	running.Wait()
	all.Released = released(open, left, seconds(t.Patience))
	for _, each := range open {
		streams.Delete(each.name)
	}
}

// next times the first event of a new stream.
func (t *task) next(all *result) {
	short := *t
	short.Events, short.Rate, short.Seconds = 1, 0, 60
	c := client{task: &short}
	defer c.close()
	r, err := c.once(time.Now())
	all.add(r, err)
	all.First = float64(r.first) / 1e3
	all.delays = nil
}

// released is in milliseconds, when the last of the streams had lost its connection; -1: not all in time.
func released(open []*stream, since time.Time, patience time.Duration) float64 {
	timeout := time.After(patience)
	for _, each := range open {
		select {
		case <-each.gone:
		case <-timeout:
			return -1
		}
	}
	return float64(time.Since(since)) / 1e6
}

func percentile(values []int64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sort.Slice(values, func(i, j int) bool { return values[i] < values[j] })
	return float64(values[int(share*float64(len(values)-1))]) / 1e3
}

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}
