// npm eventsource: URL EVENT... Reconnects by itself. A native-style EventSource hands over named events only.
import { EventSource } from "eventsource";

const [url, ...events] = process.argv.slice(2);
const source = new EventSource(url);
for (const name of ["message", ...events]) {
  source.addEventListener(name, (event) => console.log(JSON.stringify([event.type, event.data, event.lastEventId])));
}
