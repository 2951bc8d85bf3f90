// npm eventsource, many users: URL FIRST_USER USERS EVENT... Each stream reconnects by itself.
import { EventSource } from "eventsource";

const [url, first, users, ...events] = process.argv.slice(2);
for (let user = Number(first); user < Number(first) + Number(users); user++) {
  const source = new EventSource(`${url}&user_id=${user}`);
  for (const name of ["message", ...events]) {
    source.addEventListener(name, ({ type, data, lastEventId }) =>
      console.log(JSON.stringify([user, type, data, lastEventId])),
    );
  }
}
