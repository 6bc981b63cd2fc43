// Command gin relays chat completions as Go programs do that are built on Gin: it reads the lines of the API, parses
// each chunk, and sends it on as an event.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/gin-gonic/gin"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type chatRequest struct {
	Model    string    `json:"model" binding:"required"`
	Messages []message `json:"messages" binding:"required"`
	Stream   bool      `json:"stream"`
}

type delta struct {
	Role    string `json:"role,omitempty"`
	Content string `json:"content"`
}

type choice struct {
	Index        int     `json:"index"`
	Delta        delta   `json:"delta"`
	FinishReason *string `json:"finish_reason"`
}

type chunk struct {
	ID                string   `json:"id"`
	Object            string   `json:"object"`
	Created           int64    `json:"created"`
	Model             string   `json:"model"`
	ServiceTier       string   `json:"service_tier"`
	SystemFingerprint string   `json:"system_fingerprint"`
	Choices           []choice `json:"choices"`
}

var (
	upstream = os.Getenv("OPENAI_BASE_URL")
	key      = os.Getenv("OPENAI_API_KEY")
	client   = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}}
)

func main() {
	gin.SetMode(gin.ReleaseMode)
	router := gin.New()
	router.Use(gin.Logger(), gin.Recovery(), auth(map[string]string{os.Getenv("TOKEN"): "alice"}))
	router.POST("/v1/chat/completions", chat)
	router.Run("127.0.0.1:" + os.Getenv("PORT"))
}

func auth(tokens map[string]string) gin.HandlerFunc {
	return func(c *gin.Context) {
		user, known := tokens[strings.TrimPrefix(c.GetHeader("Authorization"), "Bearer ")]
		if !known {
			c.AbortWithStatusJSON(http.StatusUnauthorized, gin.H{"error": "who are you?"})
			return
		}
		c.Set("user", user)
		c.Next()
	}
}

func chat(c *gin.Context) {
	var asked chatRequest
	if err := c.ShouldBindJSON(&asked); err != nil {
		c.JSON(http.StatusBadRequest, gin.H{"error": err.Error()})
		return
	}
	response, err := ask(c, asked)
	if err != nil {
		c.JSON(http.StatusBadGateway, gin.H{"error": err.Error()})
		return
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		c.DataFromReader(response.StatusCode, response.ContentLength, "application/json", response.Body, nil)
		return
	}
	c.Header("Content-Type", "text/event-stream")
	c.Header("Cache-Control", "no-cache")
	reader := bufio.NewReader(response.Body)
	c.Stream(func(w io.Writer) bool { // which flushes after each call
		data, err := next(reader)
		if err != nil {
			return false
		}
		if string(data) == "[DONE]" {
			c.SSEvent("message", "[DONE]")
			io.Copy(io.Discard, reader)
			return false
		}
		var parsed chunk
		if err := json.Unmarshal(data, &parsed); err != nil {
			return false
		}
		c.SSEvent("message", parsed)
		return true
	})
}

func ask(c *gin.Context, asked chatRequest) (*http.Response, error) {
	asked.Stream = true
	body, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	url := upstream + "/chat/completions"
	request, err := http.NewRequestWithContext(c.Request.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+key)
	request.Header.Set("Content-Type", "application/json")
	return client.Do(request)
}

// next is the data of the next event.
func next(reader *bufio.Reader) ([]byte, error) {
	for {
		line, err := reader.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		if line = bytes.TrimSpace(line); bytes.HasPrefix(line, []byte("data: ")) {
			return line[len("data: "):], nil
		}
	}
}
