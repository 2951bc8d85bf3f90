/* The least that any server can pay for the same job: a loop of send().
 *
 * It accepts streams on the public address and answers each with a head and a `stream_open`. For each batch in a
 * call on the internal address it sends one ready-made frame, of the size that the other servers' frames have, to
 * every stream of the batch's key, and answers in their form. It looks for two numbers in a request and for nothing
 * else: it counts nothing, checks nothing, keeps nothing. One thread, one epoll.
 *
 *     server --public-listen HOST:PORT --internal-listen HOST:PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DESCRIPTORS = 1 << 17, USERS = 1 << 18, STRATEGIES = 8, EVENTS = 512, BACKLOG = 4096, READ_BYTES = 1 << 16 };
enum { BLOCKED_MS = 5000 };

enum role { NOBODY, PUBLIC, INTERNAL, STREAM, CALLER };

struct peer {
    enum role role;
    int key;            /* of a stream that has asked for one; else -1 */
    int before, after;  /* its neighbours under the key */
    char *call;         /* what a caller has sent up to now */
    size_t used, room;
};

struct text {
    char *bytes;
    size_t used, room;
};

static struct peer peers[DESCRIPTORS];
static int first_of[USERS * STRATEGIES]; /* descriptor + 1 of the first stream of a key */
static int streams_of[USERS * STRATEGIES];
static struct text answer;
static char reading[READ_BYTES];
static char frame[512];
static size_t frame_bytes;

static const char BODY[] =
    "event: order_batch_update\n"
    "data: {\"type\":\"order_batch_update\",\"data\":{\"summaries\":[{\"order_type\":\"LIMIT\",\"created\":7,"
    "\"cancelled\":3}],\"timestamp\":\"2025-10-30T12:34:56.789Z\"},\"stream\":{\"strategy_id\":3,"
    "\"after\":\"floorfloorflo-1\",\"batches\":1}}\nid: floorfloorflo-2\n\n";
static const char OPENING[] =
    "event: stream_open\nretry: 3000\ndata: {\"type\":\"stream_open\",\"data\":{\"position\":\"floorfloorflo-1\","
    "\"strategies\":[3],\"resumed\":false,\"heartbeat_seconds\":15}}\nid: floorfloorflo-1\n\n";
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-store, no-transform\r\n"
    "X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n";

static void fail(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void append(struct text *text, const char *bytes, size_t length) {
    if (text->used + length > text->room) {
        text->room = 2 * (text->used + length);
        text->bytes = realloc(text->bytes, text->room);
        if (!text->bytes) fail("memory");
    }
    memcpy(text->bytes + text->used, bytes, length);
    text->used += length;
}

/* Sends everything; waits for a client whose buffers are full, since nothing may be lost. */
static void send_all(int descriptor, const char *bytes, size_t length) {
    while (length) {
        ssize_t sent = send(descriptor, bytes, length, MSG_NOSIGNAL);
        if (sent >= 0) {
            bytes += sent;
            length -= (size_t)sent;
        } else if (errno == EAGAIN) {
            struct pollfd waited = {descriptor, POLLOUT, 0};
            if (poll(&waited, 1, BLOCKED_MS) == 0) fail("a client does not read");
        } else {
            return; /* it has left; its end is read in its turn */
        }
    }
}

static int key_of(long user_id, long strategy_id) {
    return (int)(user_id & (USERS - 1)) * STRATEGIES + (int)(strategy_id & (STRATEGIES - 1));
}

static long number_after(const char *text, const char *name) {
    const char *found = strstr(text, name);
    return found ? strtol(found + strlen(name), NULL, 10) : 0;
}

static void open_stream(int descriptor) {
    struct peer *peer = &peers[descriptor];
    peer->key = key_of(number_after(reading, "user_id="), number_after(reading, "strategy_id="));
    peer->before = 0;
    peer->after = first_of[peer->key];
    if (peer->after) peers[peer->after - 1].before = descriptor + 1;
    first_of[peer->key] = descriptor + 1;
    streams_of[peer->key]++;
    char opening[1024];
    int length = snprintf(opening, sizeof opening, "%s%zx\r\n%s\r\n", STREAM_HEAD, sizeof OPENING - 1, OPENING);
    send_all(descriptor, opening, (size_t)length);
}

static void close_peer(int descriptor) {
    struct peer *peer = &peers[descriptor];
    if (peer->role == STREAM && peer->key >= 0) {
        if (peer->before) peers[peer->before - 1].after = peer->after;
        else first_of[peer->key] = peer->after;
        if (peer->after) peers[peer->after - 1].before = peer->before;
        streams_of[peer->key]--;
    }
    free(peer->call);
    memset(peer, 0, sizeof *peer);
    close(descriptor);
}

static void emit_one(int key) {
    for (int next = first_of[key]; next; next = peers[next - 1].after) send_all(next - 1, frame, frame_bytes);
    char line[256];
    int length = snprintf(line, sizeof line,
                          "{\"status\":\"accepted\",\"position\":\"floorfloorflo-2\",\"summaries\":[{\"order_type\":"
                          "\"LIMIT\",\"created\":7,\"cancelled\":3}],\"connections\":%d,\"ignored\":0,"
                          "\"duplicate\":false}",
                          streams_of[key]);
    append(&answer, line, (size_t)length);
}

/* One frame and one answer for each batch of a body, which is an object, an array or lines. */
static void emit_body(const char *body) {
    int is_array = *body == '[';
    answer.used = 0;
    if (is_array) append(&answer, "[", 1);
    const char *at = strstr(body, "\"user_id\":");
    while (at) {
        emit_one(key_of(number_after(at, "\"user_id\":"), number_after(at, "\"strategy_id\":")));
        at = strstr(at + 10, "\"user_id\":");
        if (at) append(&answer, is_array ? "," : "\n", 1);
    }
    if (is_array) append(&answer, "]", 1);
}

static void answer_call(int descriptor, const char *body) {
    char head[128];
    emit_body(body);
    int length = snprintf(head, sizeof head,
                          "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                          answer.used);
    struct text whole = {0};
    append(&whole, head, (size_t)length);
    append(&whole, answer.bytes, answer.used);
    send_all(descriptor, whole.bytes, whole.used);
    free(whole.bytes);
}

static void read_call(int descriptor, size_t length) {
    struct peer *peer = &peers[descriptor];
    struct text call = {peer->call, peer->used, peer->room};
    append(&call, reading, length + 1); /* with the zero behind it */
    peer->call = call.bytes, peer->used = call.used - 1, peer->room = call.room;
    char *end = strstr(peer->call, "\r\n\r\n");
    if (!end) return;
    size_t body_bytes = (size_t)number_after(peer->call, "Content-Length: ");
    if (peer->used < (size_t)(end + 4 - peer->call) + body_bytes) return;
    answer_call(descriptor, end + 4);
    peer->used = 0;
}

static void read_from(int descriptor) {
    ssize_t length = recv(descriptor, reading, sizeof reading - 1, 0);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length <= 0) {
        close_peer(descriptor);
        return;
    }
    reading[length] = 0;
    if (peers[descriptor].role == CALLER) read_call(descriptor, (size_t)length);
    else if (peers[descriptor].key < 0) open_stream(descriptor); /* a GET is small and comes in one piece */
}

static void watch(int epoll, int descriptor, enum role role) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
    peers[descriptor] = (struct peer){.role = role, .key = -1};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event)) fail("epoll_ctl");
}

static void accept_all(int epoll, int listener, enum role role) {
    for (;;) {
        int descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (descriptor < 0) return;
        watch(epoll, descriptor, role);
    }
}

static int listen_on(const char *text) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[64] = "";
    int port = 0, on = 1;
    if (sscanf(text, "%63[^:]:%d", host, &port) != 2 || inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        errno = EINVAL;
        fail(text);
    }
    address.sin_port = htons((unsigned short)port);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* inherited by what is accepted */
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG)) fail(text);
    return listener;
}

static void end(int number) {
    (void)number;
    _exit(0);
}

int main(int count, char **arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: server --public-listen HOST:PORT --internal-listen HOST:PORT\n");
        return 2;
    }
    signal(SIGTERM, end);
    signal(SIGINT, end);
    frame_bytes = (size_t)snprintf(frame, sizeof frame, "%zx\r\n%s\r\n", sizeof BODY - 1, BODY);
    int epoll = epoll_create1(0);
    watch(epoll, listen_on(arguments[2]), PUBLIC);
    watch(epoll, listen_on(arguments[4]), INTERNAL);
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int at = 0; at < ready; at++) {
            int descriptor = events[at].data.fd;
            switch (peers[descriptor].role) {
            case PUBLIC: accept_all(epoll, descriptor, STREAM); break;
            case INTERNAL: accept_all(epoll, descriptor, CALLER); break;
            case STREAM:
            case CALLER: read_from(descriptor); break;
            case NOBODY: break;
            }
        }
    }
}
