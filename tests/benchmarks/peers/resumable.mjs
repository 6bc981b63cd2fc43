// A small server of Node around the package resumable-stream: the upstream's text as it comes, over any number of workers.
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";

import { createResumableStreamContext } from "resumable-stream";

const context = createResumableStreamContext({ waitUntil: null }); // it reads REDIS_URL

const server = createServer(async (request, response) => {
  try {
    if (request.method === "POST") await start(request, response);
    else await write(response, await context.resumeExistingStream(request.url.match(/[^/?]+(?=\?|$)/)[0]));
  } catch (error) {
    console.error(error);
    response.destroy();
  }
});

async function start(request, response) {
  let body = "";
  for await (const data of request) body += data;
  const upstream = await fetch(`${process.env.OPENAI_BASE_URL}/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${process.env.OPENAI_API_KEY}` },
    body,
  });
  const id = randomUUID();
  const text = upstream.body.pipeThrough(new TextDecoderStream());
  await write(response, await context.createNewResumableStream(id, () => text), { "X-Stream-Id": id });
}

async function write(response, stream, headers = {}) {
  if (!stream) {
    response.writeHead(404).end();
    return;
  }
  response.writeHead(200, { "Content-Type": "text/event-stream", ...headers });
  response.flushHeaders();
  for await (const text of stream) response.write(text);
  response.end();
}

server.listen(Number(process.env.PORT), "127.0.0.1");
