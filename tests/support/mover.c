/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moves bytes over one loopback connection after another, by any system call, and tells what it did: the truth the
 * capture is compared with.
 *
 * One line on standard input is one scenario:
 *     FAMILY SENDER RECEIVER SHAPE BLOCKING SIZE PAUSE
 * The byte at offset n of every stream is pattern(n). Answers, one a line, then "end":
 *     ready                                with PAUSE: connected; goes on after another line
 *     ports CLIENT_PORT SERVER_PORT
 *     call s|r SIZE VISIBLE ENTER EXIT     one that returned SIZE > 0; VISIBLE bytes may be captured, from the first on
 *     unseen s|r SIZE                      bytes that moved by no call of ours
 *     fail WORDS                           this kernel cannot do it
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SEGMENTS_SEEN 256 /* bpf/bytes.h MAX_SEGMENTS */
#define MESSAGES 5
#define MANY_MESSAGES 40
#define MESSAGES_SEEN 32 /* bpf/bytes.h MAX_MESSAGES */
#define MOST_SEGMENTS 1024 /* UIO_MAXIOV */

struct side {
	const char *call;
	const char *shape;
	char mark;
	bool blocking;
	int fd;
	size_t size;
	size_t done;
	uint8_t *bytes;
	char *log;
	size_t log_size;
	FILE *out;
	int ring_fd;
	void *ring, *entries;
	struct io_uring_params ring_params;
	int pipe[2];
	int copy[2]; /* what tee(2) makes of it */
	int turn;
	int file;
	bool failed;
};

static uint8_t pattern(size_t at)
{
	return at * 2654435761u >> 11;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void fail(struct side *side, const char *what)
{
	fprintf(side->out, "fail %s: %s\n", what, strerror(errno));
	side->failed = true;
}

/* Cuts `size` bytes at `base` into segments of this shape; may leave bytes over. Returns the number of segments. */
static int cut(const char *shape, uint8_t *base, size_t size, struct iovec *segments)
{
	size_t at = 0, length;
	int count = 0;

	while (at < size && count < MOST_SEGMENTS - 1) {
		if (!strcmp(shape, "tiny"))
			length = 1 + count % 7;
		else if (!strcmp(shape, "many"))
			length = size / 100 + 1;
		else if (!strcmp(shape, "huge_first"))
			length = count == 0 && size > 20 ? size - 20 : 3;
		else if (!strcmp(shape, "holes"))
			length = count % 2 ? 0 : size / 12 + 1;
		else
			length = size;
		if (length > size - at)
			length = size - at;
		segments[count].iov_base = length ? base + at : NULL;
		segments[count].iov_len = length;
		at += length;
		count++;
	}
	return count;
}

/* How many of the first `moved` bytes lie in the first `limit` segments. */
static size_t seen(const struct iovec *segments, int count, int limit, size_t moved)
{
	size_t total = 0;

	for (int i = 0; i < count && i < limit; i++)
		total += segments[i].iov_len;
	return total < moved ? total : moved;
}

static void tell(struct side *side, ssize_t moved, size_t visible, uint64_t enter, uint64_t leave)
{
	fprintf(side->out, "call %c %zd %zu %llu %llu\n", side->mark, moved, visible, (unsigned long long)enter,
		(unsigned long long)leave);
}

static ssize_t messages(struct side *side, uint8_t *base, size_t size, bool sending)
{
	struct mmsghdr vector[MANY_MESSAGES] = {};
	struct iovec segments[MANY_MESSAGES][MOST_SEGMENTS];
	size_t at = 0, total = 0;
	uint64_t enter;
	int count = 0, done, most = strstr(side->call, "many") ? MANY_MESSAGES : MESSAGES;

	/* Lengths that grow, so that a length in the wrong place shows. */
	for (; count < most && at < size; count++) {
		size_t length = count == most - 1 ? size - at : (size * (count + 1) / (most * most)) + 1;

		if (length > size - at)
			length = size - at;
		vector[count].msg_hdr.msg_iov = segments[count];
		vector[count].msg_hdr.msg_iovlen = cut(side->shape, base + at, length, segments[count]);
		length = seen(segments[count], vector[count].msg_hdr.msg_iovlen, MOST_SEGMENTS, length);
		at += length;
	}
	enter = now();
	/* recvmmsg blocks until every message has come; MSG_WAITFORONE makes it end with what is there. */
	done = sending ? sendmmsg(side->fd, vector, count, 0) : recvmmsg(side->fd, vector, count, MSG_WAITFORONE, NULL);
	if (done < 0)
		return -1;
	for (int i = 0; i < done; i++) {
		if (vector[i].msg_len == 0)
			continue;
		if (!sending && i > 0 && base + total != segments[i][0].iov_base)
			/* An earlier message came short: its bytes belong before this one's. */
			memmove(base + total, segments[i][0].iov_base, vector[i].msg_len);
		if (i >= MESSAGES_SEEN)
			fprintf(side->out, "unseen %c %u\n", side->mark, vector[i].msg_len);
		else
			tell(side, vector[i].msg_len,
			     seen(segments[i], vector[i].msg_hdr.msg_iovlen, SEGMENTS_SEEN, vector[i].msg_len), enter,
			     now());
		total += vector[i].msg_len;
		if (sending && total < (size_t)((uint8_t *)segments[i][0].iov_base - base) + vector[i].msg_len)
			die("a message was sent short in the middle");
	}
	return total;
}

static void open_ring(struct side *side)
{
	size_t size;

	side->ring_fd = syscall(SYS_io_uring_setup, 4, &side->ring_params);
	if (side->ring_fd < 0)
		return;
	size = side->ring_params.cq_off.cqes + side->ring_params.cq_entries * sizeof(struct io_uring_cqe);
	if (size < side->ring_params.sq_off.array + side->ring_params.sq_entries * 4)
		size = side->ring_params.sq_off.array + side->ring_params.sq_entries * 4;
	side->ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, side->ring_fd, IORING_OFF_SQ_RING);
	side->entries = mmap(NULL, side->ring_params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_POPULATE, side->ring_fd, IORING_OFF_SQES);
	if (side->ring == MAP_FAILED || side->entries == MAP_FAILED)
		die("mmap io_uring");
}

static ssize_t through_ring(struct side *side, int opcode, int fd, void *address, size_t size)
{
	struct io_uring_sqe *entry = side->entries;
	uint8_t *ring = side->ring;
	uint32_t *tail = (uint32_t *)(ring + side->ring_params.sq_off.tail);
	uint32_t *head = (uint32_t *)(ring + side->ring_params.cq_off.head);
	uint32_t mask = *(uint32_t *)(ring + side->ring_params.cq_off.ring_mask);
	int32_t result;

	memset(entry, 0, sizeof(*entry));
	entry->opcode = opcode;
	entry->fd = fd;
	entry->addr = (uint64_t)address;
	entry->len = size;
	((uint32_t *)(ring + side->ring_params.sq_off.array))[*tail & (side->ring_params.sq_entries - 1)] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, side->ring_fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -1;
	result = ((struct io_uring_cqe *)(ring + side->ring_params.cq_off.cqes))[*head & mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	if (result < 0) {
		errno = -result;
		return -1;
	}
	if (result > 0 && opcode != IORING_OP_ACCEPT)
		fprintf(side->out, "unseen %c %d\n", side->mark, result);
	return result;
}

/* With memory that the ring knows: of one vector, by opcodes that Debian 12's header does not name. */
#define READV_FIXED 60
#define WRITEV_FIXED 61
static ssize_t through_fixed(struct side *side, int opcode, uint8_t *base, size_t size)
{
	struct iovec all = {side->bytes, side->size}, one = {base, size};

	if (side->done == 0 && syscall(SYS_io_uring_register, side->ring_fd, IORING_REGISTER_BUFFERS, &all, 1) < 0 &&
	    errno != EBUSY)
		return -1;
	return through_ring(side, opcode, side->fd, &one, 1);
}

/* By turns: bytes that a call of ours moves, and bytes that io_uring moves. */
static ssize_t mixed(struct side *side, uint8_t *base, size_t size)
{
	uint64_t enter;
	ssize_t moved;

	if (size > 1000)
		size = 1000;
	if (side->turn++ % 2 == 0)
		return through_ring(side, IORING_OP_SEND, side->fd, base, size);
	enter = now();
	moved = write(side->fd, base, size);
	if (moved > 0)
		tell(side, moved, moved, enter, now());
	return moved;
}

static ssize_t splice_in(struct side *side, uint8_t *base, size_t size)
{
	uint64_t enter = now();
	ssize_t moved = splice(side->fd, NULL, side->pipe[1], NULL, size, side->blocking ? 0 : SPLICE_F_NONBLOCK);

	if (moved <= 0)
		return moved;
	tell(side, moved, 0, enter, now());
	for (ssize_t at = 0; at < moved;) {
		ssize_t got = read(side->pipe[0], base + at, moved - at);

		if (got <= 0)
			die("read pipe");
		at += got;
	}
	return moved;
}

static ssize_t splice_out(struct side *side, uint8_t *base, size_t size)
{
	static __thread size_t in_pipe;
	bool through_tee = !strcmp(side->call, "tee_out");
	uint64_t enter;
	ssize_t moved;

	if (in_pipe == 0) {
		struct iovec pages = {base, size < 65536 ? size : 65536};

		moved = through_tee ? vmsplice(side->pipe[1], &pages, 1, 0) : write(side->pipe[1], base, pages.iov_len);
		if (moved <= 0)
			die("fill the pipe");
		if (through_tee && (tee(side->pipe[0], side->copy[1], moved, 0) != moved ||
				    splice(side->pipe[0], NULL, side->file, NULL, moved, 0) != moved))
			die("tee");
		in_pipe = moved;
	}
	enter = now();
	moved = splice(through_tee ? side->copy[0] : side->pipe[0], NULL, side->fd, NULL, in_pipe, 0);
	if (moved > 0) {
		in_pipe -= moved;
		tell(side, moved, 0, enter, now());
	}
	return moved;
}

static ssize_t move_once(struct side *side)
{
	uint8_t *base = side->bytes + side->done;
	size_t size = side->size - side->done;
	struct iovec segments[MOST_SEGMENTS];
	struct msghdr header = {};
	const char *call = side->call;
	int count, limit = SEGMENTS_SEEN;
	size_t visible = size;
	uint64_t enter;
	ssize_t moved;

	if (!strncmp(call, "sendmmsg", 8) || !strncmp(call, "recvmmsg", 8))
		return messages(side, base, size, call[0] == 's');
	if (!strcmp(call, "uring_mixed"))
		return mixed(side, base, size);
	if (!strcmp(call, "uring_send"))
		return through_ring(side, IORING_OP_SEND, side->fd, base, size);
	if (!strcmp(call, "uring_writev_fixed"))
		return through_fixed(side, WRITEV_FIXED, base, size);
	if (!strcmp(call, "uring_readv_fixed"))
		return through_fixed(side, READV_FIXED, base, size);
	if (!strncmp(call, "uring", 5))
		return through_ring(side, IORING_OP_RECV, side->fd, base, size);
	if (!strcmp(call, "splice_in"))
		return splice_in(side, base, size);
	if (!strcmp(call, "splice_out") || !strcmp(call, "tee_out"))
		return splice_out(side, base, size);
	if (!strcmp(call, "peek")) {
		/* The same bytes twice, by every call that can look without taking. */
		struct iovec one = {base, size};
		struct msghdr look = {.msg_iov = &one, .msg_iovlen = 1};
		struct mmsghdr several = {.msg_hdr = look};

		if (recv(side->fd, base, size, MSG_PEEK) < 0)
			return -1;
		recvmsg(side->fd, &look, MSG_PEEK);
		recvmmsg(side->fd, &several, 1, MSG_PEEK, NULL);
		recv(side->fd, NULL, size, MSG_PEEK | MSG_TRUNC);
	}
	count = cut(side->shape, base, size, segments);
	header.msg_iov = segments;
	header.msg_iovlen = count;
	enter = now();
	if (!strcmp(call, "write"))
		moved = write(side->fd, base, size);
	else if (!strcmp(call, "read"))
		moved = read(side->fd, base, size);
	else if (!strcmp(call, "send"))
		moved = send(side->fd, base, size, MSG_NOSIGNAL);
	else if (!strcmp(call, "send_more"))
		moved = send(side->fd, base, size, size > 1 ? MSG_MORE : 0);
	else if (!strcmp(call, "recv") || !strcmp(call, "peek"))
		moved = recv(side->fd, base, size, 0);
	else if (!strcmp(call, "recv_all"))
		moved = recv(side->fd, base, size, MSG_WAITALL);
	else if (!strcmp(call, "recv_trunc"))
		moved = recv(side->fd, base, size, MSG_TRUNC);
	else if (!strcmp(call, "recvmsg_trunc"))
		moved = recvmsg(side->fd, &header, MSG_TRUNC);
	else if (!strcmp(call, "writev"))
		moved = writev(side->fd, segments, count);
	else if (!strcmp(call, "readv"))
		moved = readv(side->fd, segments, count);
	else if (!strcmp(call, "pwritev2"))
		moved = pwritev2(side->fd, segments, count, -1, 0);
	else if (!strcmp(call, "preadv2"))
		moved = preadv2(side->fd, segments, count, -1, 0);
	else if (!strcmp(call, "sendmsg"))
		moved = sendmsg(side->fd, &header, 0);
	else if (!strcmp(call, "recvmsg"))
		moved = recvmsg(side->fd, &header, 0);
	else if (!strcmp(call, "sendfile"))
		moved = sendfile(side->fd, side->file, NULL, size);
	else {
		fprintf(stderr, "no such call: %s\n", call);
		exit(2);
	}
	if (moved <= 0)
		return moved;
	if (strstr(call, "msg") || strstr(call, "v2") || !strcmp(call, "readv") || !strcmp(call, "writev"))
		visible = seen(segments, count, limit, moved);
	if (visible > (size_t)moved)
		visible = moved;
	if (strstr(call, "trunc") || !strcmp(call, "sendfile"))
		visible = 0;
	tell(side, moved, visible, enter, now());
	if (strstr(call, "trunc")) /* the bytes were thrown away: what should have come */
		for (ssize_t i = 0; i < moved; i++)
			base[i] = pattern(side->done + i);
	return moved;
}

static void *move(void *argument)
{
	struct side *side = argument;

	while (side->done < side->size && !side->failed) {
		ssize_t moved = move_once(side);

		if (moved > 0) {
			side->done += moved;
		} else if (moved == 0) {
			errno = EPIPE;
			fail(side, side->call);
		} else if (errno == EAGAIN) {
			struct pollfd wait = {.fd = side->fd, .events = side->mark == 's' ? POLLOUT : POLLIN};

			poll(&wait, 1, -1);
		} else {
			fail(side, side->call);
			shutdown(side->fd, SHUT_RDWR);
		}
	}
	return NULL;
}

static void prepare(struct side *side, char mark, int fd, size_t size, bool blocking)
{
	side->mark = mark;
	side->fd = fd;
	side->size = size;
	side->blocking = blocking;
	side->bytes = malloc(size);
	side->out = open_memstream(&side->log, &side->log_size);
	if (!blocking)
		fcntl(fd, F_SETFL, O_NONBLOCK);
	if (pipe(side->pipe) || pipe(side->copy))
		die("pipe");
	if (mark == 's')
		for (size_t i = 0; i < size; i++)
			side->bytes[i] = pattern(i);
	if (!strcmp(side->call, "sendfile")) {
		side->file = memfd_create("mover", 0);
		if (write(side->file, side->bytes, size) != (ssize_t)size || lseek(side->file, 0, SEEK_SET))
			die("memfd");
	}
	if (!strcmp(side->call, "tee_out"))
		side->file = open("/dev/null", O_WRONLY);
	if (!strncmp(side->call, "uring", 5) && !side->ring_fd)
		open_ring(side);
	if (side->ring_fd < 0)
		fail(side, "io_uring_setup");
}

static void finish(struct side *side)
{
	fclose(side->out);
	fputs(side->log, stdout);
	free(side->log);
	free(side->bytes);
	close(side->pipe[0]);
	close(side->pipe[1]);
	close(side->copy[0]);
	close(side->copy[1]);
	if (side->file > 0)
		close(side->file);
	if (side->ring_fd > 0)
		close(side->ring_fd);
}

static int accept_by(struct side *side, int listener)
{
	if (!strncmp(side->call, "uring_accept", 12)) {
		open_ring(side);
		side->out = stdout;
		if (side->ring_fd > 0)
			return through_ring(side, IORING_OP_ACCEPT, listener, NULL, 0);
	}
	return accept(listener, NULL, NULL);
}

static void scenario(int family, struct side *sender, struct side *receiver, bool blocking, size_t size, bool pause)
{
	struct sockaddr_storage address = {.ss_family = family};
	socklen_t length = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	int listener = socket(family, SOCK_STREAM, 0), client = socket(family, SOCK_STREAM, 0), server, one = 1;
	struct sockaddr_in6 name;
	pthread_t thread;
	int client_port, server_port;

	if (family == AF_INET)
		((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback;
	if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1))
		die("listen");
	getsockname(listener, (struct sockaddr *)&address, &length);
	if (connect(client, (struct sockaddr *)&address, length))
		die("connect");
	server = accept_by(receiver, listener);
	if (pause) {
		char go[8];

		puts("ready");
		fflush(stdout);
		if (scanf("%7s", go) != 1)
			die("ready");
	}
	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	server_port = ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
	length = sizeof(name);
	getsockname(client, (struct sockaddr *)&name, &length);
	client_port = ntohs(name.sin6_port);
	prepare(sender, 's', client, size, blocking);
	prepare(receiver, 'r', server, size, blocking);
	if (!sender->failed && !receiver->failed) {
		if (pthread_create(&thread, NULL, move, sender))
			die("pthread_create");
		move(receiver);
		pthread_join(thread, NULL);
		for (size_t i = 0; i < receiver->done; i++)
			if (receiver->bytes[i] != pattern(i)) {
				fprintf(stderr, "byte %zu came wrong\n", i);
				exit(3);
			}
	}
	close(client);
	close(server);
	close(listener);
	printf("ports %d %d\n", client_port, server_port);
	finish(sender);
	finish(receiver);
	puts("end");
	fflush(stdout);
}

int main(void)
{
	char sends[32], receives[32], shape[32];
	int family, blocking, pause;
	size_t size;

	while (scanf("%d %31s %31s %31s %d %zu %d", &family, sends, receives, shape, &blocking, &size, &pause) == 7) {
		struct side sender = {.call = sends, .shape = shape}, receiver = {.call = receives, .shape = shape};

		scenario(family == 6 ? AF_INET6 : AF_INET, &sender, &receiver, blocking, size, pause);
	}
	return 0;
}
