// Command proxy is the reverse proxy of Go's standard library, which sends on whatever it has read, at once.
package main

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
)

func main() {
	upstream, err := url.Parse(strings.TrimSuffix(os.Getenv("OPENAI_BASE_URL"), "/v1"))
	if err != nil {
		panic(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(upstream)
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 1000}
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), proxy))
}
