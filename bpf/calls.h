/* SPDX-License-Identifier: GPL-2.0-only */
/* System calls: noted at entry, recorded at exit, when bytes and positions are known. */

#define MSG_OOB_FLAG 1
#define MSG_PEEK_FLAG 2
#define MSG_TRUNC_FLAG 0x20
#define MSG_ERRQUEUE_FLAG 0x2000

#define EINTR_NUMBER 4
#define EFAULT_NUMBER 14
#define EINVAL_NUMBER 22
#define EAFNOSUPPORT_NUMBER 97
#define EISCONN_NUMBER 106
#define EALREADY_NUMBER 114
#define EINPROGRESS_NUMBER 115
#define ERESTARTSYS_NUMBER 512

static __always_inline u32 class_of(u32 number)
{
	u8 *class = call_classes.lookup(&number);

	return class ? *class : CALL_NONE;
}

/* The socket that close(2) or one of its kin is about to release, CLOSES_ANY where that may be several, or 0. */
static __always_inline u64 closed_sock(struct task_struct *task, struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *user = USER_REGISTERS(task, ctx->args[0]);

	switch (ctx->args[1]) {
	case NUMBER_CLOSE:
		return sock_of(task, ARGUMENT_0(user));
	case NUMBER_CLOSE_RANGE:
		return CLOSES_ANY;
	default: /* dup2, dup3: the descriptor written over */
		return sock_of(task, ARGUMENT_1(user));
	}
}

/* Calls of unwatched processes end here: one array look-up, and one hash look-up for the calls we know. */
int on_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	u32 class = class_of(ctx->args[1]);
	struct task_struct *task;
	u32 tgid, tid;
	struct thread *thread;

	if (class == CALL_NONE)
		return 0;
	task = CURRENT_TASK();
	tgid = FIELD(task->tgid);
	tid = FIELD(task->pid);
	if (!watched(tgid))
		return 0;
	if (IS_COMPAT(task)) {
		count(STAT_COMPAT); /* other numbers, other layouts: better nothing than nonsense */
		return 0;
	}
	thread = threads.lookup(&tid);
	if (!thread) {
		struct thread fresh = {};

		if (threads.update(&tid, &fresh)) {
			count(STAT_THREADS_FULL);
			return 0;
		}
		thread = threads.lookup(&tid);
		if (!thread)
			return 0;
	}
	thread->enter_ns = bpf_ktime_get_ns();
	thread->call = class;
	thread->close_sk = class == CALL_CLOSE ? closed_sock(task, ctx) : 0;
	return 0;
}

struct io {
	u64 sk;
	u64 enter_ns;
	u32 call;
	u32 direction;
	u32 tgid;
	u32 tid;
	u32 position; /* of its first byte */
	u32 opposite; /* reached in the other direction */
	bool unreadable; /* bytes never were in the caller's memory */
};

/* How much of a call's bytes to copy: sets how many to skip, returns how many are wanted after them. */
static __always_inline u32 wanted(struct connection *connection, struct io *io, u32 size, u32 *skip)
{
	u32 direction = io->direction & 1;
	/* A message begins where the other side has spoken since, and its head is to be seen whole. */
	u32 limit = connection->turned[direction] != io->opposite ? CAPTURE_LIMIT : CONTINUED_LIMIT;
	struct policy *policy;
	u64 id;
	u32 distance;

	*skip = 0;
	connection->turned[direction] = io->opposite;
	if (io->unreadable || connection->muted[direction])
		return 0;
	if (size <= ALWAYS_COPY && (connection->calls++ & 15))
		return size;
	if (connection->flags & CONNECTION_FRAMES)
		limit = CAPTURE_LIMIT;
	id = connection->id;
	policy = policies.lookup(&id);
	if (policy) {
		if (policy->mode[direction] == POLICY_NEVER) {
			connection->muted[direction] = 1;
			return 0;
		}
		if (policy->mode[direction] == POLICY_SKIP) {
			distance = policy->until[direction] - io->position;
			if (distance < 0x80000000) {
				if (distance >= size)
					return 0;
				*skip = distance;
			}
		}
		if (policy->frames)
			limit = CAPTURE_LIMIT;
	}
	size -= *skip;
	return size < limit ? size : limit;
}

#define PREFACE_CALLS 8
#define PREFACE_START 0x20495250 /* "PRI ", RFC 9113 3.4 */

/* Notices HTTP/2 at once: what comes until user space has noticed may already be large. */
static __always_inline void look_for_preface(struct connection *connection, struct scratch *scratch, u32 captured)
{
	if (connection->calls <= PREFACE_CALLS && captured >= sizeof(u32) && *(u32 *)scratch->bytes == PREFACE_START)
		__sync_fetch_and_or(&connection->flags, CONNECTION_FRAMES);
}

static __always_inline void put_call(struct connection *connection, struct io *io, struct span *span)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct scratch *scratch = scratch_map.lookup(&cpu);
	u64 captured;
	u32 skip, want;

	if (!scratch)
		return;
	announce(connection, io->sk, PROGRAM_CALL);
	want = wanted(connection, io, span->size, &skip);
	captured = want ? copy_span(scratch, span, skip, want) : 0;
	look_for_preface(connection, scratch, captured);
	scratch->record.header.kind = RECORD_CALL;
	scratch->record.header.call = io->call;
	scratch->record.header.direction = io->direction;
	scratch->record.header.flags = 0;
	scratch->record.header.reserved = 0;
	scratch->record.header.tgid = io->tgid;
	scratch->record.header.connection = connection->id;
	scratch->record.header.enter_ns = io->enter_ns;
	scratch->record.header.exit_ns = bpf_ktime_get_ns();
	scratch->record.size = span->size;
	scratch->record.offset = captured ? skip : 0;
	scratch->record.captured = captured;
	scratch->record.position = io->position;
	scratch->record.opposite = io->opposite;
	scratch->record.tid = io->tid;
	OPAQUE(captured);
	if (captured > CAPTURE_LIMIT)
		return;
	put(&scratch->record.header, sizeof(struct call_record) + captured, PROGRAM_CALL);
}

/* The connection of this I/O, made now if it is older than the agent or came from elsewhere; or 0. */
static __always_inline struct connection *connection_of(struct io *io, u32 size, u32 program)
{
	struct connection *connection = connections.lookup(&io->sk);
	u64 now;
	u8 state;

	if (connection) {
		if (!(connection->flags & CONNECTION_PENDING))
			return connection;
		/* Fast open: written before there is a connection; these bytes are a gap. Else its outcome has escaped us. */
		state = state_of((struct sock *)io->sk);
		if (state == TCP_SYN_SENT || state == TCP_SYN_RECV || state == TCP_CLOSE)
			return 0;
		connected(connection, io->sk, true, program);
		return connection;
	}
	if (!is_tcp((struct sock *)io->sk)) {
		count(STAT_NOT_TCP);
		return 0;
	}
	now = bpf_ktime_get_ns();
	connection = make_connection(io->sk, io->tgid, CAUSE_MET, now, now);
	if (!connection)
		return 0;
	/* It begins for us before this call, not after it. */
	if (io->direction == EGRESS)
		connection->written -= size;
	else
		connection->read -= size;
	return connection;
}

/* Where `size` bytes that the call has just moved began, and how far the other direction is. */
static __always_inline void locate(struct connection *connection, struct io *io, u32 size)
{
	u32 written = written_position(connection, (struct sock *)io->sk);
	u32 read = read_position(connection, (struct sock *)io->sk);

	io->position = (io->direction == EGRESS ? written : read) - size;
	io->opposite = io->direction == EGRESS ? read : written;
}

static __always_inline void accepted(u32 tgid, u64 sk, u64 enter_ns, u32 program)
{
	struct connection *connection;

	if (!sk || !is_tcp((struct sock *)sk))
		return;
	connection = make_connection(sk, tgid, CAUSE_ACCEPT, enter_ns, bpf_ktime_get_ns());
	if (connection)
		announce(connection, sk, program);
}

/*
 * connect(2) has failed. Most failures are state changes and recorded there. The others end before any (no route), or
 * without an error in the socket (no free port).
 */
static __always_inline void connect_failed(int fd, u64 address, u32 tgid, u64 enter_ns, int error)
{
	u64 sk, now;
	struct connection *connection;

	switch (error) {
	case EINPROGRESS_NUMBER:
	case EALREADY_NUMBER:
	case EISCONN_NUMBER:
	case EINTR_NUMBER:
	case EFAULT_NUMBER:
	case EINVAL_NUMBER:
	case EAFNOSUPPORT_NUMBER:
	case ERESTARTSYS_NUMBER:
		return;
	}
	sk = sock_of(CURRENT_TASK(), fd);
	if (!sk || !is_tcp((struct sock *)sk) || state_of((struct sock *)sk) != TCP_CLOSE)
		return;
	now = bpf_ktime_get_ns();
	connection = connections.lookup(&sk);
	if (!connection)
		connection = make_connection(sk, tgid, CAUSE_CONNECT, enter_ns, now);
	else if (!(connection->flags & CONNECTION_PENDING))
		return;
	if (!connection)
		return;
	clear(connection, CONNECTION_PENDING);
	connection->open_ns = now;
	connection->error = error;
	announce_asked(connection, sk, PROGRAM_CALL, address);
}

int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = CURRENT_TASK();
	struct pt_regs *user = USER_REGISTERS(task, ctx->args[0]);
	long result = ctx->args[1];
	u32 class = class_of(SYSCALL_NUMBER_OF(user));
	u32 tid, tgid;
	struct thread *thread;
	struct connection *connection;
	struct io io = {};
	struct span span = {};
	u64 flags = 0;

	if (class == CALL_NONE)
		return 0;
	tid = FIELD(task->pid);
	thread = threads.lookup(&tid);
	if (!thread || thread->call != class)
		return 0;
	tgid = FIELD(task->tgid);
	thread->call = CALL_NONE;
	if (class == CALL_CONNECT) {
		if (result < 0)
			connect_failed(ARGUMENT_0(user), ARGUMENT_1(user), tgid, thread->enter_ns, -result);
		return 0;
	}
	if (result < 0 || class == CALL_CLOSE || class == CALL_SHUTDOWN)
		return 0;
	if (class == CALL_ACCEPT) {
		accepted(tgid, sock_of(task, result), thread->enter_ns, PROGRAM_CALL);
		return 0;
	}
	if (result == 0)
		return 0; /* end of stream; its moment is the state change */
	io.enter_ns = thread->enter_ns;
	io.call = class;
	io.tgid = tgid;
	io.tid = tid;
	io.direction = class >= CALL_WRITE && class != CALL_PREADV2 ? EGRESS : INGRESS;
	span.base = ARGUMENT_1(user);
	span.size = result;
	io.sk = sock_of(task, ARGUMENT_0(user));
	switch (class) {
	case CALL_READV:
	case CALL_WRITEV:
	case CALL_PREADV2:
	case CALL_PWRITEV2:
		span.segments = ARGUMENT_2(user);
		break;
	case CALL_RECVFROM:
		flags = ARGUMENT_3(user);
		break;
	case CALL_RECVMSG:
		flags = ARGUMENT_2(user);
		/* fall through */
	case CALL_SENDMSG: {
		struct user_msghdr header = {};

		bpf_probe_read_user(&header, sizeof(header), (void *)ARGUMENT_1(user));
		span.base = (u64)header.msg_iov;
		span.segments = header.msg_iovlen;
		break;
	}
	case CALL_RECVMMSG:
		flags = ARGUMENT_3(user);
		break;
	case CALL_SENDFILE:
		io.unreadable = true;
		break;
	case CALL_SPLICE:
		io.unreadable = true;
		if (!io.sk) { /* from a pipe into a socket, or not a socket at all */
			io.sk = sock_of(task, ARGUMENT_2(user));
			io.direction = EGRESS;
		} else {
			io.direction = INGRESS;
		}
		break;
	}
	if (!io.sk)
		return 0;
	if (io.direction == INGRESS && flags & (MSG_PEEK_FLAG | MSG_OOB_FLAG | MSG_ERRQUEUE_FLAG))
		return 0; /* the position does not move: the same bytes are read again, or are no bytes of the stream */
	if (flags & MSG_TRUNC_FLAG)
		io.unreadable = true; /* tcp(7): discarded, not copied */
	if (class == CALL_SENDMMSG || class == CALL_RECVMMSG) {
		thread->message_call = class;
		thread->messages = result;
		thread->message = 0;
		tail_programs.call(ctx, TAIL_MESSAGES);
		return 0;
	}
	connection = connection_of(&io, span.size, PROGRAM_CALL);
	if (!connection)
		return 0;
	locate(connection, &io, span.size);
	put_call(connection, &io, &span);
	return 0;
}

/*
 * All messages' bytes together; those beyond MAX_MESSAGES get no record and show as a jump of the position. The running
 * numbers live in the map for the reason copy_span gives.
 */
static __always_inline u32 bytes_of_messages(struct thread *thread, struct mmsghdr *vector)
{
	thread->position = 0;
	for (int i = 0; i < MOST_MESSAGES; i++) {
		u32 length = 0;

		if (i >= thread->messages)
			break;
		bpf_probe_read_user(&length, sizeof(length), &vector[i].msg_len);
		thread->position += length;
	}
	return thread->position;
}

/*
 * The second half of on_sys_exit for sendmmsg and recvmmsg: a record for each message, with its own length. One message
 * a run, then it calls itself: a loop over messages costs the verifier ten times more with each one (6.18).
 */
int tail_messages(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = CURRENT_TASK();
	struct pt_regs *user = USER_REGISTERS(task, ctx->args[0]);
	u32 tid = FIELD(task->pid);
	struct mmsghdr *vector = (struct mmsghdr *)ARGUMENT_1(user);
	struct mmsghdr message = {};
	struct thread *thread = threads.lookup(&tid);
	struct connection *connection;
	struct span span = {};
	struct io io = {};
	u32 total;

	if (!thread || thread->message >= thread->messages || thread->message >= MAX_MESSAGES)
		return 0;
	io.call = thread->message_call;
	io.enter_ns = thread->enter_ns;
	io.tgid = FIELD(task->tgid);
	io.tid = tid;
	io.direction = io.call == CALL_SENDMMSG ? EGRESS : INGRESS;
	io.unreadable = io.direction == INGRESS && ARGUMENT_3(user) & MSG_TRUNC_FLAG;
	io.sk = sock_of(task, ARGUMENT_0(user));
	if (!io.sk || bpf_probe_read_user(&message, sizeof(message), &vector[thread->message]))
		return 0;
	total = thread->message == 0 ? bytes_of_messages(thread, vector) : 0;
	connection = connection_of(&io, total, PROGRAM_CALL);
	if (!connection)
		return 0;
	locate(connection, &io, total);
	if (thread->message == 0)
		thread->position = io.position;
	else
		io.position = thread->position;
	span.base = (u64)message.msg_hdr.msg_iov;
	span.segments = message.msg_hdr.msg_iovlen;
	span.size = message.msg_len;
	if (span.size)
		put_call(connection, &io, &span);
	thread->position += span.size;
	thread->message++;
	tail_programs.call(ctx, TAIL_MESSAGES);
	return 0;
}
