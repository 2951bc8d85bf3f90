// fetch and npm eventsource-parser: URL [LAST_EVENT_ID]. Ends when the connection is cut.
import { createParser } from "eventsource-parser";

const [url, lastEventId] = process.argv.slice(2);
const headers = { Accept: "text/event-stream", ...(lastEventId && { "Last-Event-ID": lastEventId }) };
const parser = createParser({
  onEvent: ({ event, data, id }) => console.log(JSON.stringify([event ?? "message", data, id ?? ""])),
  onError: (error) => {
    throw error;
  },
});
const response = await fetch(url, { headers });
const decoder = new TextDecoder();
try {
  for await (const piece of response.body) {
    parser.feed(decoder.decode(piece, { stream: true }));
  }
} catch (error) {
  if (!(error instanceof TypeError && error.message === "terminated")) throw error;
}
