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

static __always_inline u8 state_of_policy(u8 mode)
{
	switch (mode) {
	case POLICY_SKIP:
		return WALK_CONTENT;
	case POLICY_CHUNK:
		return WALK ? WALK_CHUNKS : WALK_CONTENT;
	case POLICY_FRAME:
		return WALK ? WALK_FRAMES : WALK_CONTENT;
	}
	return WALK_NONE;
}

/* What user space has said of the connection since the last time. */
static __always_inline void consult(struct connection *connection, struct io *io)
{
	u32 direction = io->direction & 1;
	u64 id = connection->id;
	struct policy *policy = policies.lookup(&id);
	struct walk *walk = &connection->walks[direction];
	u8 mode, state;
	u32 distance;

	if (!policy)
		return;
	mode = policy->mode[direction];
	if (mode == POLICY_NEVER)
		connection->muted[direction] = 1;
	if (policy->frames)
		set(connection, CONNECTION_FRAMES);
	if (policy->number[direction] == connection->policy[direction])
		return;
	connection->policy[direction] = policy->number[direction];
	connection->held[direction] = mode == POLICY_COPY;
	state = state_of_policy(mode);
	distance = policy->until[direction] - io->position;
	if (state != WALK_NONE && (walk->state != WALK_NONE || distance >= 0x80000000))
		return; /* it knows by itself, or these bytes have passed */
	walk->state = state;
	walk->left = distance;
	walk->position = io->position;
	walk->wanted = 0;
	walk->phase = 0; /* the beginning of a frame header, or CHUNK_END */
	if (state == WALK_CONTENT && distance == 0)
		walk->state = WALK_NONE;
}

/*
 * Plans how a call is to be copied: by a tail program, or else how many bytes to skip and how many are wanted then. The
 * walk's state moves on by the call, save where a tail program does it.
 */
static __always_inline void plan_call(struct connection *connection, struct io *io, struct span *span, struct scratch *scratch)
{
	u32 direction = io->direction & 1;
	struct walk *walk = &connection->walks[direction];
	bool turned = connection->turned[direction] != io->opposite;
	u32 size = span->size;
	bool small = size <= ALWAYS_COPY;
	/* A message begins where the other side has spoken since, and its head is to be seen whole. */
	u32 limit = turned ? CAPTURE_LIMIT : CONTINUED_LIMIT;

	scratch->plan.skip = 0;
	scratch->plan.want = 0;
	scratch->plan.way = TAIL_NONE;
	scratch->plan.flags = 0;
	connection->turned[direction] = io->opposite;
	if (connection->muted[direction])
		return;
	if (!small || !(connection->calls++ & 15)) {
		consult(connection, io);
		if (connection->muted[direction])
			return;
	}
	if (walk->state != WALK_NONE) {
		if (walk->position != io->position)
			walk->state = WALK_NONE;
		/* After HEAD there was no content, and after a refused Expect there is none: RFC 9110 9.3.2, 10.1.1. */
		else if (turned && walk->state != WALK_FRAMES && !io->unreadable && begins_message(first_word(span)))
			walk->state = WALK_NONE;
	}
	if (walk->state != WALK_NONE) {
		if (walk->left >= size && (walk->state != WALK_FRAMES || walk->wanted == 0)) {
			walk->left -= size;
			walk->position += size;
			if (walk->left == 0 && walk->state == WALK_CONTENT)
				walk->state = WALK_NONE;
			scratch->plan.flags = HOW_WALKED;
			if (small && !io->unreadable)
				scratch->plan.want = size;
			return;
		}
		if (io->unreadable) {
			walk->state = WALK_NONE;
			return;
		}
		if (walk->state != WALK_CONTENT) {
			if (small)
				scratch->plan.want = size;
			scratch->plan.limit = limit;
			scratch->plan.way = walk->state == WALK_FRAMES ? TAIL_FRAMES : TAIL_CHUNKS;
			return;
		}
		walk->state = WALK_NONE;
		if (!small)
			scratch->plan.skip = walk->left;
	}
	if (io->unreadable)
		return;
	if (small) {
		scratch->plan.want = size;
		return;
	}
	if (connection->flags & CONNECTION_FRAMES)
		limit = CAPTURE_LIMIT;
	size -= scratch->plan.skip;
	scratch->plan.limit = size < limit ? size : limit;
	scratch->plan.want = scratch->plan.limit;
#if WALK
	if (scratch->plan.skip == 0 && scratch->plan.want > HEAD_WINDOW && !connection->held[direction] &&
	    begins_with_content(first_word(span)))
		scratch->plan.want = HEAD_WINDOW;
#endif
}

#define PREFACE_CALLS 8

/* Notices HTTP/2 at once: what comes until user space has noticed may already be large. */
static __always_inline void look_for_preface(struct connection *connection, struct scratch *scratch, u32 captured)
{
	if (connection->calls <= PREFACE_CALLS && captured >= sizeof(u32) && *(u32 *)scratch->bytes == WORD_PREFACE)
		__sync_fetch_and_or(&connection->flags, CONNECTION_FRAMES);
}

#if WALK

/* Whether a walk begins at the first byte of a call that was copied: HTTP/2's first frame, or a head to look into. */
static __always_inline u32 way_of_bytes(struct connection *connection, struct io *io, struct scratch *scratch, u32 size,
					u64 captured)
{
	u32 direction = io->direction & 1;
	struct walk *walk = &connection->walks[direction];
	u32 word = *(u32 *)scratch->bytes;
	u64 at = captured;
	u16 last;

	if (connection->held[direction] || captured < FRAME_HEADER)
		return TAIL_NONE;
	if (io->position == (direction == EGRESS ? connection->written : connection->read) && connection->cause != CAUSE_MET) {
		/* Both sides begin with SETTINGS, the client with its preface before (RFC 9113 3.4). */
		bool settings = scratch->bytes[0] == 0 && scratch->bytes[1] == 0 && scratch->bytes[3] == 4 &&
				*(u32 *)(scratch->bytes + 4) == 0 && scratch->bytes[8] == 0;

		if (word == WORD_PREFACE || settings) {
			walk->state = WALK_FRAMES;
			walk->phase = 0;
			walk->wanted = walk->left = settings ? 0 : PREFACE_SIZE;
			return TAIL_FRAMES;
		}
	}
	if (!begins_with_content(word))
		return TAIL_NONE;
	if (size > ALWAYS_COPY)
		return TAIL_HEAD;
	/* Of a small call most end what they begin. Those that do not end with a head, or with a chunk that is not the last. */
	OPAQUE(at);
	if (at < 7 || at > CAPTURE_LIMIT)
		return TAIL_NONE;
	last = *(u16 *)(scratch->bytes + at - 2);
	if (last != WORD('\r', '\n', 0, 0) || *(u32 *)(scratch->bytes + at - 7) == WORD('\r', '\n', '0', '\r'))
		return TAIL_NONE;
	return TAIL_HEAD;
}

/* Hands the call on to the program of a tail; comes back only where the kernel will not take it there. */
static __always_inline void walk_on(struct bpf_raw_tracepoint_args *ctx, struct connection *connection, struct io *io,
				    struct span *span, struct scratch *scratch)
{
	struct walker *walker = &scratch->walker;

	__builtin_memset(walker, 0, offsetof(struct walker, head));
	walker->walk = connection->walks[io->direction & 1];
	walker->sk = io->sk;
	walker->base = span->base;
	walker->segments = span->segments;
	walker->rest = span->size;
	if (!span->segments) {
		walker->address = span->base;
		walker->available = span->size;
	}
	walker->limit = scratch->plan.limit;
	walker->whole = span->size <= ALWAYS_COPY;
	if (scratch->plan.way == TAIL_HEAD)
		walker->captured = scratch->record.captured;
	__builtin_memcpy(walker->head, walker->walk.head, FRAME_HEADER);
	walker->turns = io->call == CALL_SENDMMSG || io->call == CALL_RECVMMSG ? 1 : MAX_TURNS;
	walker->cut = scratch->plan.way == TAIL_CHUNKS && walker->walk.left == 0 && walker->walk.phase != CHUNK_END;
	tail_programs.call(ctx, scratch->plan.way);
}

#endif

static __always_inline void fill_record(struct connection *connection, struct io *io, struct span *span,
					struct scratch *scratch, u64 captured)
{
	scratch->record.header.kind = RECORD_CALL;
	scratch->record.header.call = io->call;
	scratch->record.header.direction = io->direction;
	scratch->record.header.flags = scratch->plan.flags;
	scratch->record.header.provisional = is_provisional(connection);
	scratch->record.header.tgid = io->tgid;
	scratch->record.header.connection = connection->id;
	scratch->record.header.enter_ns = io->enter_ns;
	scratch->record.header.exit_ns = bpf_ktime_get_ns();
	scratch->record.size = span->size;
	scratch->record.offset = captured ? scratch->plan.skip : 0;
	scratch->record.captured = captured;
	scratch->record.position = io->position;
	scratch->record.opposite = io->opposite;
	scratch->record.tid = io->tid;
}

static __always_inline void put_record(struct scratch *scratch, struct connection *connection, u64 captured)
{
	OPAQUE(captured);
	if (captured <= CAPTURE_LIMIT)
		put(&scratch->record.header, connection, sizeof(struct call_record) + captured, PROGRAM_CALL);
}

static __always_inline void put_call(struct bpf_raw_tracepoint_args *ctx, struct connection *connection, struct io *io,
				     struct span *span)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct scratch *scratch = scratch_map.lookup(&cpu);
	u64 captured = 0;

	if (!scratch)
		return;
	announce(connection, io->sk, PROGRAM_CALL);
	plan_call(connection, io, span, scratch);
	if (scratch->plan.want)
		captured = copy_span(scratch, span, scratch->plan.skip, scratch->plan.want, 0);
	look_for_preface(connection, scratch, captured);
	fill_record(connection, io, span, scratch, captured);
#if WALK
	if (scratch->plan.way == TAIL_NONE && connection->walks[io->direction & 1].state == WALK_NONE)
		scratch->plan.way = way_of_bytes(connection, io, scratch, span->size, captured);
	if (scratch->plan.way != TAIL_NONE) {
		walk_on(ctx, connection, io, span, scratch);
		connection->walks[io->direction & 1].state = WALK_NONE;
	}
#endif
	put_record(scratch, connection, captured);
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
	put_call(ctx, connection, &io, &span);
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

/* A message vector is walked only as long as there are tail calls for each of its messages. */
#define MAX_WALKED_MESSAGES 8

static __always_inline void put_message(struct bpf_raw_tracepoint_args *ctx, struct connection *connection,
					struct thread *thread, struct io *io, struct span *span)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct scratch *scratch = scratch_map.lookup(&cpu);
	u64 captured = 0;

	if (!scratch)
		return;
	if (thread->messages <= MAX_WALKED_MESSAGES) {
		scratch->message.io = *io;
		scratch->message.span = *span;
		tail_programs.call(ctx, TAIL_MESSAGE);
	}
	announce(connection, io->sk, PROGRAM_CALL);
	scratch->plan.skip = 0;
	scratch->plan.flags = 0;
	if (!io->unreadable && !connection->muted[io->direction & 1])
		captured = copy_span(scratch, span, 0, span->size, 0);
	fill_record(connection, io, span, scratch, captured);
	put_record(scratch, connection, captured);
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
	/* Before the call's record: who puts it may go on to the next message by himself. */
	thread->position += span.size;
	thread->message++;
	if (span.size)
		put_message(ctx, connection, thread, &io, &span);
	tail_programs.call(ctx, TAIL_MESSAGES);
	return 0;
}

/* One message of a short vector, as a call of its own: a program of its own for the verifier's sake. */
int tail_message(struct bpf_raw_tracepoint_args *ctx)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct scratch *scratch = scratch_map.lookup(&cpu);
	struct connection *connection;
	struct span span;
	struct io io;

	if (!scratch)
		return 0;
	io = scratch->message.io;
	span = scratch->message.span;
	connection = connections.lookup(&io.sk);
	if (connection)
		put_call(ctx, connection, &io, &span);
	tail_programs.call(ctx, TAIL_MESSAGES);
	return 0;
}
