/* The load client: thousands of streams, and the emitters that feed them, on one epoll.
 *
 *     client PUBLIC_HOST PUBLIC_PORT INTERNAL_HOST INTERNAL_PORT COUNT_NAME
 *
 * Commands come as lines on stdin, each is answered by one line of JSON on stdout, and the end of stdin ends it:
 *
 *     open FILE IN_FLIGHT FIRST_IDS RESUME
 *         open a stream more for each record; ready after its FIRST_IDS-th `id:` line (0: with the first byte
 *         behind the head)
 *     emit FILE PACED_SENDERS SENDERS PAUSE_US TIMED
 *         send every record, wait for every frame that the answers owe
 *     idle MS
 *         read what comes
 *     close
 *         close all streams
 *
 * FILE holds records, numbers in the machine's order. Of open: u32 key, u32 length, a request without its last empty
 * line; RESUME 1 adds the last id which the stream of the same place in an earlier `open` has read. Of emit: u64 due
 * (ns from the start; all ones: as soon as a sender is free), u32 key, u32 batches, u32 length, a request.
 *
 * What is owed is exact: an answer says how many connections each batch went to, behind COUNT_NAME, and a run in which
 * not precisely that many batches arrive fails. A frame which says that it carries n batches is n of them.
 *
 * The latency of a frame counts from the moment at which its emit was due, not from the one at which it was sent: a
 * server that stalls delays later emits too, and that is its doing (no coordinated omission). Frames of a key come in
 * the order of its emits. With both kinds of record in a file, the ones without a time are repeated until the others
 * are done, and only the others are timed.
 *
 * PAUSE_US sleeps between two looks at the sockets, so that the server's send() seldom has to wake this process: for
 * measuring CPU, never for latency.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DESCRIPTORS = 1 << 17, EVENTS = 64, READ_BYTES = 1 << 16, TAIL = 64, ID_BYTES = 72 };
enum { WAIT_SECONDS = 30, CONNECT_SECONDS = 120, OPENED_BETWEEN_LOOKS = 64 };
enum { STREAMS_PER_CLIENT_ADDRESS = 5000, CLIENT_ADDRESSES = 200 }; /* an address has 28,232 ports by default */
#define AS_SOON_AS_FREE UINT64_MAX
#define NO_KEY UINT32_MAX

typedef uint64_t ns;

struct stream {
    int descriptor;
    uint32_t key;
    int is_connected, is_urgent, is_open, past_head, ids;
    ns started_at;
    uint32_t batches; /* of this emit command */
    const char *request;
    uint32_t request_bytes;
    int tail_bytes;
    char tail[TAIL]; /* the end of what was read, when a line may be cut there */
    char last_id[ID_BYTES];
};

struct emitter {
    int descriptor;
    int is_busy, is_paced;
    uint32_t batches; /* of the call under way */
    const char *unsent;
    size_t unsent_bytes;
    char *answer;
    size_t used, room;
};

struct due_times { /* of the emits of one key, in order */
    ns *at;
    uint32_t used, room;
};

struct record {
    ns due;
    uint32_t key, batches, length;
    const char *request;
};

static int epoll, urgent; /* `urgent` is watched by `epoll`, and looked at before each of the others' turns */
static struct sockaddr_in public_address, internal_address;
static const char *count_name;

static int owner_of[DESCRIPTORS]; /* place of a stream + 1, or -(place of an emitter + 1) */
static struct stream *streams;
static uint32_t stream_count, stream_room, opening, first_ids;
static uint32_t sockets_opened;

static struct emitter *emitters;
static uint32_t emitter_count;

static struct due_times *due_of;
static uint32_t due_keys;
static int is_timed;
static uint64_t frames, batches_in, stream_bytes, owed, answered;
static ns *latencies, *opened_in;
static size_t latency_count, latency_room;
static ns measured_late;

static char reading[TAIL + READ_BYTES + 1];

static ns now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (ns)time.tv_sec * 1000000000u + (ns)time.tv_nsec;
}

static ns cpu(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (ns)time.tv_sec * 1000000000u + (ns)time.tv_nsec;
}

/* Says why on stdout, as every answer, with what may break a JSON string left out; ends. */
static _Noreturn void fail(const char *what, const char *detail) {
    printf("{\"error\":\"%s: ", what);
    for (int at = 0; detail[at] && at < 600; at++)
        putchar(detail[at] < ' ' || detail[at] == '"' || detail[at] == '\\' ? ' ' : detail[at]);
    printf("\"}\n");
    fflush(stdout);
    exit(1);
}

static void *grown(void *memory, size_t bytes) {
    memory = realloc(memory, bytes);
    if (!memory) fail("memory", strerror(errno));
    return memory;
}

static void watch_in(int set, int descriptor, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.fd = descriptor};
    if (epoll_ctl(set, operation, descriptor, &event)) fail("epoll_ctl", strerror(errno));
}

static void watch(int descriptor, uint32_t events, int operation) {
    watch_in(epoll, descriptor, events, operation);
}

/* -- records */

static char *file_bytes;
static struct record *records;
static uint32_t record_count;

static uint32_t u32_at(const char *bytes) {
    uint32_t number;
    memcpy(&number, bytes, sizeof number);
    return number;
}

static void read_records(const char *path, int are_timed) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail(path, strerror(errno));
    long size = ftell(file);
    rewind(file);
    file_bytes = grown(file_bytes, (size_t)size + 1);
    if (fread(file_bytes, 1, (size_t)size, file) != (size_t)size) fail(path, "short read");
    fclose(file);
    record_count = 0;
    uint32_t room = 0;
    for (const char *at = file_bytes; at < file_bytes + size;) {
        if (record_count == room) records = grown(records, (room = room * 2 + 1024) * sizeof *records);
        struct record *record = &records[record_count++];
        *record = (struct record){.due = AS_SOON_AS_FREE};
        if (are_timed) memcpy(&record->due, at, sizeof record->due), at += 8;
        record->key = u32_at(at), at += 4;
        if (are_timed) record->batches = u32_at(at), at += 4;
        record->length = u32_at(at), at += 4;
        record->request = at, at += record->length;
    }
}

/* -- streams */

static void open_next(struct stream *stream, uint32_t place, const struct record *record) {
    struct sockaddr_in from = {.sin_family = AF_INET};
    int on = 1;
    /* 127.0.0.2 and up, so that no pair of addresses runs out of ports. */
    from.sin_addr.s_addr =
        htonl(INADDR_LOOPBACK + 1 + sockets_opened++ / STREAMS_PER_CLIENT_ADDRESS % CLIENT_ADDRESSES);
    stream->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (stream->descriptor < 0 || stream->descriptor >= DESCRIPTORS) fail("socket", strerror(errno));
    setsockopt(stream->descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(stream->descriptor, (struct sockaddr *)&from, sizeof from)) fail("bind", strerror(errno));
    stream->key = record->key, stream->request = record->request, stream->request_bytes = record->length;
    stream->is_connected = stream->is_urgent = stream->is_open = stream->past_head = stream->ids = stream->tail_bytes = 0;
    stream->batches = 0;
    stream->started_at = now();
    owner_of[stream->descriptor] = (int)place + 1;
    if (connect(stream->descriptor, (struct sockaddr *)&public_address, sizeof public_address) && errno != EINPROGRESS)
        fail("connect", strerror(errno));
    watch(stream->descriptor, EPOLLOUT, EPOLL_CTL_ADD);
    opening++;
}

static int is_resuming;

static void ask(struct stream *stream) {
    char request[2048];
    int length = snprintf(request, sizeof request, "%.*s", (int)stream->request_bytes, stream->request);
    if (is_resuming && stream->last_id[0])
        length += snprintf(request + length, sizeof request - (size_t)length, "Last-Event-ID: %s\r\n", stream->last_id);
    length += snprintf(request + length, sizeof request - (size_t)length, "\r\n");
    if (send(stream->descriptor, request, (size_t)length, MSG_NOSIGNAL) != length)
        fail("a connection was refused", strerror(errno));
    stream->is_connected = 1;
    watch(stream->descriptor, EPOLLIN, EPOLL_CTL_MOD);
}

static void note_open(struct stream *stream, ns at) {
    stream->is_open = 1;
    opening--;
    opened_in[stream - streams] = at - stream->started_at;
}

static void note_batch(struct stream *stream, ns at) {
    batches_in++;
    if (!is_timed || stream->key >= due_keys) return;
    struct due_times *due = &due_of[stream->key];
    if (stream->batches >= due->used) return; /* of a key that is not timed */
    if (latency_count == latency_room)
        latencies = grown(latencies, (latency_room = latency_room * 2 + 4096) * sizeof *latencies);
    latencies[latency_count++] = at - due->at[stream->batches++];
}

/* How many batches a frame says that it carries, from the end of its data line, where the `id:` line follows. */
static unsigned long carried(const char *start, const char *line) {
    const char *digits = line;
    while (digits > start && digits[-1] == '}') digits--;
    const char *end = digits;
    while (digits > start && digits[-1] >= '0' && digits[-1] <= '9') digits--;
    if (digits == end || digits - start < 10 || memcmp(digits - 10, "\"batches\":", 10)) return 1;
    return strtoul(digits, NULL, 10);
}

static void note_id(struct stream *stream, const char *start, const char *line, const char *end, ns at) {
    const char *id = line + 5, *stop = id;
    while (stop < end && *stop != '\n' && *stop != '\r' && stop - id < ID_BYTES - 1) stop++;
    memcpy(stream->last_id, id, (size_t)(stop - id));
    stream->last_id[stop - id] = 0;
    stream->ids++;
    if (!stream->is_open) {
        batches_in += carried(start, line);
        if (stream->ids >= (int)first_ids) note_open(stream, at);
        return;
    }
    frames++;
    for (unsigned long left = carried(start, line); left; left--) note_batch(stream, at);
}

/* Finds whole `id:` lines; keeps the end of what is cut, so that a line is found once however it is cut. */
static void feed(struct stream *stream, char *bytes, size_t length, ns at) {
    char *start = bytes - stream->tail_bytes, *end = bytes + length;
    memcpy(start, stream->tail, (size_t)stream->tail_bytes);
    char *from = start, *line;
    while ((line = memmem(from, (size_t)(end - from), "\nid: ", 5))) {
        if (!memchr(line + 1, '\n', (size_t)(end - line - 1))) break; /* its end has not come yet */
        note_id(stream, start, line, end, at);
        from = line + 5;
    }
    size_t kept = (size_t)(end - from);
    int is_at_an_end = end - start >= 4 && (!memcmp(end - 2, "\n\n", 2) || !memcmp(end - 4, "\n\n\r\n", 4));
    if (!line && is_at_an_end) kept = 1;
    if (kept > TAIL) kept = TAIL;
    memcpy(stream->tail, end - kept, kept);
    stream->tail_bytes = (int)kept;
}

static void check_head(struct stream *stream, char *bytes, size_t length, ns at) {
    bytes[length] = 0;
    if (memcmp(bytes, "HTTP/1.1 200", length < 12 ? length : 12)) fail("a stream did not open", bytes);
    char *end = strstr(bytes, "\r\n\r\n"); /* small, and in one piece from every server here */
    if (!end) fail("a head in pieces", bytes);
    stream->past_head = 1;
    if (!first_ids && end + 4 < bytes + length) note_open(stream, at);
}

static void read_stream(struct stream *stream) {
    char *bytes = reading + TAIL;
    ssize_t length = recv(stream->descriptor, bytes, READ_BYTES, 0);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) fail("a stream ended", length ? strerror(errno) : "closed by the server");
    ns at = now();
    stream_bytes += (uint64_t)length;
    if (!stream->past_head) check_head(stream, bytes, (size_t)length, at);
    else if (!stream->is_open && !first_ids) note_open(stream, at);
    feed(stream, bytes, (size_t)length, at);
}

/* -- emitters */

static void send_some(struct emitter *emitter) {
    ssize_t sent = send(emitter->descriptor, emitter->unsent, emitter->unsent_bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) fail("an emit could not be sent", strerror(errno));
    int was_whole = emitter->unsent_bytes == 0;
    if (sent > 0) emitter->unsent += sent, emitter->unsent_bytes -= (size_t)sent;
    if (was_whole) return;
    watch_in(urgent, emitter->descriptor, emitter->unsent_bytes ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

static void send_call(struct emitter *emitter, const struct record *record) {
    emitter->is_busy = 1;
    emitter->batches = record->batches;
    emitter->unsent = record->request, emitter->unsent_bytes = record->length;
    ssize_t sent = send(emitter->descriptor, emitter->unsent, emitter->unsent_bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) fail("an emit could not be sent", strerror(errno));
    if (sent > 0) emitter->unsent += sent, emitter->unsent_bytes -= (size_t)sent;
    if (emitter->unsent_bytes) watch_in(urgent, emitter->descriptor, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
}

static void open_emitter(int is_paced) {
    emitters = grown(emitters, (emitter_count + 1) * sizeof *emitters);
    struct emitter *emitter = &emitters[emitter_count];
    *emitter = (struct emitter){.descriptor = socket(AF_INET, SOCK_STREAM, 0), .is_paced = is_paced};
    int on = 1, room = 1 << 20;
    setsockopt(emitter->descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(emitter->descriptor, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    if (connect(emitter->descriptor, (struct sockaddr *)&internal_address, sizeof internal_address))
        fail("the internal address", strerror(errno));
    owner_of[emitter->descriptor] = -(int)(++emitter_count);
    watch_in(urgent, emitter->descriptor, EPOLLIN, EPOLL_CTL_ADD);
}

static void have_emitters(uint32_t wanted, int is_paced) {
    uint32_t had = 0;
    for (uint32_t at = 0; at < emitter_count; at++) had += emitters[at].is_paced == is_paced;
    for (; had < wanted; had++) open_emitter(is_paced);
}

/* The first that is free; the caller knows that there is one at most of `wanted`. */
static struct emitter *free_emitter(uint32_t wanted, int is_paced) {
    for (uint32_t at = 0; at < emitter_count && wanted; at++) {
        if (emitters[at].is_paced != is_paced) continue;
        if (!emitters[at].is_busy) return &emitters[at];
        wanted--;
    }
    return NULL;
}

static char *body_of(struct emitter *emitter) {
    emitter->answer[emitter->used] = 0;
    char *end = strstr(emitter->answer, "\r\n\r\n");
    if (!end) return NULL;
    char *length = strcasestr(emitter->answer, "\ncontent-length:");
    if (!length || length > end) fail("an answer without its length", emitter->answer);
    if (emitter->used < (size_t)(end + 4 - emitter->answer) + strtoul(length + 16, NULL, 10)) return NULL;
    return end + 4;
}

static void note_answer(struct emitter *emitter, const char *body) {
    if (memcmp(emitter->answer, "HTTP/1.1 20", 11)) fail("an emit was refused", emitter->answer);
    uint32_t found = 0;
    for (const char *at = body; (at = strstr(at, count_name)); found++) {
        at += strlen(count_name);
        owed += strtoul(at, NULL, 10);
    }
    if (found != emitter->batches) fail("not every batch was accepted", body);
    answered++;
    emitter->is_busy = 0;
    emitter->used = 0;
}

static void read_answer(struct emitter *emitter) {
    if (emitter->room - emitter->used < READ_BYTES + 1)
        emitter->answer = grown(emitter->answer, emitter->room = 2 * emitter->room + READ_BYTES + 1);
    ssize_t length = recv(emitter->descriptor, emitter->answer + emitter->used, READ_BYTES, MSG_DONTWAIT);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) fail("an emitter's connection ended", length ? strerror(errno) : "closed by the server");
    emitter->used += (size_t)length;
    char *body = body_of(emitter);
    if (body) note_answer(emitter, body);
}

/* -- the loop */

static void look_at(const struct epoll_event *event) {
    int owner = owner_of[event->data.fd];
    if (owner < 0) {
        struct emitter *emitter = &emitters[-owner - 1];
        if (event->events & EPOLLOUT) send_some(emitter);
        if (event->events & ~(uint32_t)EPOLLOUT) read_answer(emitter);
    } else if (streams[owner - 1].is_connected) {
        read_stream(&streams[owner - 1]);
    } else {
        ask(&streams[owner - 1]);
    }
}

/* Reads once from EVENTS at most that have something; waits for it until `until` at most. Says whether that was all. */
static int pump(ns until) {
    struct epoll_event events[EVENTS];
    ns at = now(), wait = until > at ? until - at : 0;
    struct timespec longest = {(time_t)(wait / 1000000000u), (long)(wait % 1000000000u)};
    int ready = epoll_pwait2(epoll, events, EVENTS, &longest, NULL);
    struct epoll_event first[EVENTS];
    int urgents = epoll_wait(urgent, first, EVENTS, 0);
    for (int i = 0; i < urgents; i++) look_at(&first[i]);
    for (int i = 0; i < ready; i++)
        if (events[i].data.fd != urgent) look_at(&events[i]);
    return ready < EVENTS && urgents < EVENTS;
}

static int by_size(const void *one, const void *other) {
    ns a = *(const ns *)one, b = *(const ns *)other;
    return (a > b) - (a < b);
}

static void print_spread(const char *name, ns *times, size_t count) {
    qsort(times, count, sizeof *times, by_size);
#define AT(part) (count ? times[(size_t)((double)(count - 1) * (part))] : 0)
    printf("\"%s\":{\"count\":%zu,\"p50_ns\":%" PRIu64 ",\"p99_ns\":%" PRIu64 ",\"p999_ns\":%" PRIu64
           ",\"slowest_ns\":%" PRIu64 "}",
           name, count, AT(0.5), AT(0.99), AT(0.999), AT(1.0));
}

static void command_open(const char *path, uint32_t in_flight, uint32_t ids, int resumes) {
    read_records(path, 0);
    first_ids = ids, is_resuming = resumes;
    batches_in = 0;
    uint32_t before = stream_count, wanted = stream_count + record_count;
    if (wanted > stream_room) {
        streams = grown(streams, wanted * sizeof *streams);
        opened_in = grown(opened_in, wanted * sizeof *opened_in);
        memset(streams + stream_room, 0, (wanted - stream_room) * sizeof *streams);
        stream_room = wanted;
    }
    ns started = now(), cpu_before = cpu(), give_up = started + CONNECT_SECONDS * 1000000000ull;
    while (stream_count < wanted || opening) {
        while (stream_count < wanted && opening < in_flight) {
            open_next(&streams[stream_count], stream_count, &records[stream_count - before]);
            stream_count++;
            if (stream_count % OPENED_BETWEEN_LOOKS == 0) pump(0);
        }
        pump(now() + 100000000u);
        if (now() > give_up) fail("open", "streams did not open in time");
    }
    printf("{\"wall_ns\":%" PRIu64 ",\"cpu_ns\":%" PRIu64 ",\"batches\":%" PRIu64 ",", now() - started,
           cpu() - cpu_before, batches_in);
    print_spread("opened", opened_in + before, record_count);
    printf("}\n");
}

static void note_due(const struct record *record, ns due) {
    if (!is_timed || record->key == NO_KEY) return;
    if (record->key >= due_keys) {
        due_of = grown(due_of, (record->key + 1) * sizeof *due_of);
        memset(due_of + due_keys, 0, (record->key + 1 - due_keys) * sizeof *due_of);
        due_keys = record->key + 1;
    }
    struct due_times *times = &due_of[record->key];
    if (times->used == times->room) times->at = grown(times->at, (times->room = times->room * 2 + 8) * sizeof(ns));
    times->at[times->used++] = due;
}

static void forget_the_last_emits(int timed) {
    is_timed = timed;
    frames = batches_in = stream_bytes = owed = answered = latency_count = measured_late = 0;
    for (uint32_t key = 0; key < due_keys; key++) due_of[key].used = 0;
    for (uint32_t at = 0; at < stream_count; at++) streams[at].batches = 0;
}

struct lane { /* the records of one kind, and how far they are */
    uint32_t next, count, *places;
    int waits_for_sender;
};

static void split_lanes(struct lane *paced, struct lane *free_running) {
    *paced = (struct lane){.places = grown(NULL, (record_count + 1) * sizeof(uint32_t))};
    *free_running = (struct lane){.places = grown(NULL, (record_count + 1) * sizeof(uint32_t))};
    for (uint32_t at = 0; at < record_count; at++) {
        struct lane *lane = records[at].due == AS_SOON_AS_FREE ? free_running : paced;
        lane->places[lane->count++] = at;
    }
}

/* Beside a busy neighbour: a timed frame must not wait until the client has read thousands of others. */
static void make_urgent(const struct lane *lane) {
    for (uint32_t at = 0; at < stream_count; at++) {
        int is_in_lane = 0;
        for (uint32_t i = 0; i < lane->count && !is_in_lane; i++)
            is_in_lane = records[lane->places[i]].key == streams[at].key;
        if (!is_in_lane || streams[at].is_urgent) continue;
        watch_in(epoll, streams[at].descriptor, 0, EPOLL_CTL_DEL);
        watch_in(urgent, streams[at].descriptor, EPOLLIN, EPOLL_CTL_ADD);
        streams[at].is_urgent = 1;
    }
}

/* Sends what is due. What had to wait for a sender is late by the server's doing, the rest by the client's own. */
static uint64_t send_paced(struct lane *lane, uint32_t senders, ns started) {
    uint64_t sent = 0;
    for (; lane->next < lane->count; lane->next++, sent++) {
        const struct record *record = &records[lane->places[lane->next]];
        ns due = started + record->due, at = now();
        struct emitter *emitter = due <= at ? free_emitter(senders, 1) : NULL;
        if (due > at) lane->waits_for_sender = 0;
        else if (!emitter) lane->waits_for_sender = 1;
        if (!emitter) break;
        if (!lane->waits_for_sender && at - due > measured_late) measured_late = at - due;
        note_due(record, due);
        send_call(emitter, record);
    }
    return sent;
}

static uint64_t send_free(struct lane *lane, uint32_t senders, int repeats, int timed) {
    uint64_t sent = 0;
    struct emitter *emitter;
    while (lane->count && (repeats || lane->next < lane->count) && (emitter = free_emitter(senders, 0))) {
        const struct record *record = &records[lane->places[lane->next % lane->count]];
        if (timed) note_due(record, now());
        send_call(emitter, record);
        lane->next++, sent++;
    }
    return sent;
}

static ns next_wake(const struct lane *paced, uint32_t senders, ns started) {
    ns longest = now() + 100000000u;
    if (paced->next >= paced->count || !free_emitter(senders, 1)) return longest;
    ns due = started + records[paced->places[paced->next]].due;
    return due < longest ? due : longest;
}

static void command_emit(const char *path, uint32_t paced_senders, uint32_t senders, unsigned pause_us, int timed) {
    struct lane paced, free_running;
    read_records(path, 1);
    split_lanes(&paced, &free_running);
    forget_the_last_emits(timed);
    have_emitters(paced_senders, 1);
    have_emitters(senders, 0);
    int is_mixed = paced.count && free_running.count;
    if (is_mixed) make_urgent(&paced);
    uint64_t sent = 0, progress = 0;
    ns cpu_before = cpu(), started = now(), moved = started;
    for (;;) {
        int is_over = is_mixed && paced.next == paced.count;
        sent += send_paced(&paced, paced_senders, started);
        if (!is_over) sent += send_free(&free_running, senders, is_mixed, timed && !is_mixed);
        int is_all_sent = paced.next == paced.count && (is_over || free_running.next >= free_running.count);
        if (is_all_sent && answered == sent && batches_in >= owed) break;
        int is_drained = pump(next_wake(&paced, paced_senders, started));
        if (pause_us && is_drained) usleep(pause_us);
        if (sent + answered + batches_in != progress) progress = sent + answered + batches_in, moved = now();
        if (now() - moved > WAIT_SECONDS * 1000000000ull) {
            char text[200];
            snprintf(text, sizeof text, "%" PRIu64 " sent, %" PRIu64 " answered, %" PRIu64 " owed, %" PRIu64 " came",
                     sent, answered, owed, batches_in);
            fail("waited in vain", text);
        }
    }
    ns wall = now() - started;
    ns used = cpu() - cpu_before;
    pump(0);
    is_timed = 0;
    if (batches_in != owed) fail("more frames came", "than were owed");
    printf("{\"wall_ns\":%" PRIu64 ",\"cpu_ns\":%" PRIu64 ",\"calls\":%" PRIu64 ",\"frames\":%" PRIu64
           ",\"batches\":%" PRIu64 ",\"stream_bytes\":%" PRIu64 ",\"latest_send_ns\":%" PRIu64 ",",
           wall, used, sent, frames, batches_in, stream_bytes, measured_late);
    print_spread("latency", latencies, latency_count);
    printf("}\n");
    free(paced.places);
    free(free_running.places);
}

static void command_idle(unsigned milliseconds) {
    for (ns until = now() + milliseconds * 1000000ull; now() < until;) pump(until);
    printf("{\"wall_ns\":0}\n");
}

static void command_close(void) {
    for (uint32_t at = 0; at < stream_count; at++) close(streams[at].descriptor);
    stream_count = 0;
    printf("{\"wall_ns\":0}\n");
}

static struct sockaddr_in address_of(const char *host, const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail("address", host);
    return address;
}

int main(int count, char **arguments) {
    if (count != 6) fail("usage", "client PUBLIC_HOST PUBLIC_PORT INTERNAL_HOST INTERNAL_PORT COUNT_NAME");
    public_address = address_of(arguments[1], arguments[2]);
    internal_address = address_of(arguments[3], arguments[4]);
    count_name = arguments[5];
    epoll = epoll_create1(0), urgent = epoll_create1(0);
    watch(urgent, EPOLLIN, EPOLL_CTL_ADD);
    prctl(PR_SET_TIMERSLACK, 1);
    setpriority(PRIO_PROCESS, 0, -10); /* where it may: others on its core would be in every latency */
    char line[4096], path[3072];
    while (fgets(line, sizeof line, stdin)) {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (sscanf(line, "open %3071s %u %u %u", path, &a, &b, &c) == 4) command_open(path, a, b, (int)c);
        else if (sscanf(line, "emit %3071s %u %u %u %u", path, &a, &b, &c, &d) == 5) command_emit(path, a, b, c, (int)d);
        else if (sscanf(line, "idle %u", &a) == 1) command_idle(a);
        else if (!strncmp(line, "close", 5)) command_close();
        else fail("no such command", line);
        fflush(stdout);
    }
    return 0;
}
