// EventSource, which reconnects by itself.
const HALF = 30; // of the answer's tokens
const ENDS = ["completed", "failed", "stopped"];

// Follows a stream to its end, and gives the end. `seen` is called with each delta; it may close the source.
function follow(facts, url, seen, after = "") {
  const place = after && `&last_event_id=${after}`;
  const source = new EventSource(`${url}?token=${facts.token}${place}`);
  return new Promise((resolve, reject) => {
    source.addEventListener("delta", (event) => {
      seen(JSON.parse(event.data).text, event.lastEventId, () => {
        source.close();
        resolve(null);
      });
    });
    for (const name of ENDS) {
      source.addEventListener(name, ({ data }) => {
        source.close();
        resolve({ name, ...JSON.parse(data) });
      });
    }
    source.addEventListener("error", () => source.readyState === EventSource.CLOSED && reject(new Error("closed")));
  });
}

checks.text = async (facts) => {
  let text = "";
  const end = await follow(facts, await start(facts, await model("fast")), (delta) => (text += delta));
  return end.name === "completed" ? text : end;
};

checks.live = async (facts) => {
  const name = await model("held");
  const found = [];
  await follow(facts, await start(facts, name), (delta) => {
    found.push(delta);
    if (found.length <= 2) release(name);
  });
  return found.join("");
};

checks.usage = async (facts) => {
  const end = await follow(facts, await start(facts, await model("fast")), () => {});
  return end.usage.completion_tokens;
};

checks.auth = async (facts) => {
  const url = await start(facts, await model("fast"));
  const refused = await follow({ ...facts, token: "wrong" }, url, () => {}).catch(({ message }) => message);
  return refused === "closed" ? "401" : refused;
};

checks.model = async (facts) => (await follow(facts, await start(facts, "missing-model"), () => {})).error.code;

checks.cut = async (facts) => (await follow(facts, await start(facts, await model("cut")), () => {})).error.code;

checks.resume = async (facts) => {
  const url = await start(facts, await model("fast"));
  let text = "";
  let place = "";
  let count = 0;
  await follow(facts, url, (delta, id, close) => {
    if (count === HALF) return; // what was delivered before the close took effect
    text += delta;
    place = id;
    if (++count === HALF) close();
  });
  await follow(facts, url, (delta) => (text += delta), place);
  return text;
};

// The server closes the connection after the end; the source asks again, with the end's id, and is answered 204.
checks.end = async (facts) => {
  const url = `${await start(facts, await model("fast"))}?token=${facts.token}`;
  const source = new EventSource(url);
  const ends = [];
  for (const name of ENDS) source.addEventListener(name, () => ends.push(name));
  await new Promise((resolve) => {
    source.addEventListener("error", () => source.readyState === EventSource.CLOSED && resolve());
  });
  const answers = await statuses(url);
  return ends.join() === "completed" && answers.join() === "200,204" ? "over" : `${ends} ${answers}`;
};

checks.stop = async (facts) => {
  const name = await model("held");
  const url = await start(facts, name);
  const end = await follow(facts, url, () => stop(facts, url));
  await wasCancelled(name);
  return end.name;
};
