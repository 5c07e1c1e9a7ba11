/* SPDX-License-Identifier: GPL-2.0-only */
/* System calls: noted at entry, recorded at exit, when bytes and positions are known. */

#define MSG_PEEK_FLAG 2
#define MSG_TRUNC_FLAG 0x20
#define MSG_ERRQUEUE_FLAG 0x2000

static __always_inline u32 class_of(u32 number)
{
	u8 *class = call_classes.lookup(&number);

	return class ? *class : CALL_NONE;
}

/* Calls of unwatched processes end here: one array look-up, and one hash look-up for the calls we know. */
int on_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	u32 class = class_of(ctx->args[1]);
	u64 pid_tgid;
	u32 tgid, tid;
	struct thread *thread;

	if (class == CALL_NONE)
		return 0;
	pid_tgid = bpf_get_current_pid_tgid();
	tgid = pid_tgid >> 32;
	tid = pid_tgid;
	if (!watched(tgid))
		return 0;
	if (IS_COMPAT((struct task_struct *)bpf_get_current_task())) {
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
	thread->close_ns = class == CALL_CLOSE ? thread->enter_ns : 0;
	return 0;
}

struct io {
	u64 sk;
	u64 enter_ns;
	u32 call;
	u32 direction;
	u32 tgid;
	u32 tid;
	u32 position;
	bool unreadable; /* bytes never were in the caller's memory */
};

/* How much of a call's bytes to copy: sets how many to skip, returns how many are wanted after them. */
static __always_inline u32 wanted(struct connection *connection, struct io *io, u32 size, u32 *skip)
{
	u32 direction = io->direction & 1;
	struct policy *policy;
	u64 id;
	u32 distance;

	*skip = 0;
	if (io->unreadable || connection->muted[direction])
		return 0;
	if (size <= ALWAYS_COPY && (connection->calls++ & 15))
		return size;
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
	}
	size -= *skip;
	return size < CAPTURE_LIMIT ? size : CAPTURE_LIMIT;
}

static __always_inline void put_call(struct connection *connection, struct io *io, struct span *span, int segments)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct scratch *scratch = scratch_map.lookup(&cpu);
	u64 captured;
	u32 skip, want;

	if (!scratch)
		return;
	announce(connection, io->sk, PROGRAM_CALL);
	want = wanted(connection, io, span->size, &skip);
	captured = want ? copy_span(scratch, span, skip, want, segments) : 0;
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
	scratch->record.opposite = io->direction == EGRESS ? read_position((struct sock *)io->sk)
							   : written_position((struct sock *)io->sk);
	scratch->record.tid = io->tid;
	OPAQUE(captured);
	if (captured > CAPTURE_LIMIT)
		return;
	put(&scratch->record.header, sizeof(struct call_record) + captured, PROGRAM_CALL);
}

/* The connection of this I/O, made now if it is older than the agent or came from elsewhere. */
static __always_inline struct connection *connection_of(struct io *io)
{
	struct connection *connection = connections.lookup(&io->sk);
	u64 now;

	if (connection)
		return connection;
	if (!is_tcp((struct sock *)io->sk)) {
		count(STAT_NOT_TCP);
		return 0;
	}
	now = bpf_ktime_get_ns();
	return make_connection(io->sk, io->tgid, CAUSE_MET, now, now);
}

/* The position its socket has reached in the direction of this I/O. */
static __always_inline u32 position_of(struct io *io)
{
	return io->direction == EGRESS ? written_position((struct sock *)io->sk) : read_position((struct sock *)io->sk);
}

/* One span whose first byte is at io->position. */
static __always_inline void io_done(struct io *io, struct span *span, int segments)
{
	struct connection *connection = connection_of(io);

	if (connection)
		put_call(connection, io, span, segments);
}

static __always_inline void accepted(u32 tgid, int fd, u64 enter_ns)
{
	u64 sk = sock_of(fd);
	struct connection *connection;

	if (!sk || !is_tcp((struct sock *)sk))
		return;
	connection = make_connection(sk, tgid, CAUSE_ACCEPT, enter_ns, bpf_ktime_get_ns());
	if (connection)
		announce(connection, sk, PROGRAM_CALL);
}

int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *user = (struct pt_regs *)ctx->args[0];
	long result = ctx->args[1];
	u32 class = class_of(SYSCALL_NUMBER_OF(user));
	u64 pid_tgid;
	u32 tid;
	struct thread *thread;
	struct io io = {};
	struct span span = {};
	u64 flags = 0;

	if (class == CALL_NONE)
		return 0;
	pid_tgid = bpf_get_current_pid_tgid();
	tid = pid_tgid;
	thread = threads.lookup(&tid);
	if (!thread || thread->call != class)
		return 0;
	thread->call = CALL_NONE;
	if (result < 0 || class == CALL_CONNECT || class == CALL_CLOSE || class == CALL_SHUTDOWN)
		return 0;
	if (class == CALL_ACCEPT) {
		accepted(pid_tgid >> 32, result, thread->enter_ns);
		return 0;
	}
	if (result == 0)
		return 0; /* end of stream; its moment is the state change */
	io.enter_ns = thread->enter_ns;
	io.call = class;
	io.tgid = pid_tgid >> 32;
	io.tid = tid;
	io.direction = class >= CALL_WRITE && class != CALL_PREADV2 ? EGRESS : INGRESS;
	span.base = ARGUMENT_1(user);
	span.size = result;
	io.sk = sock_of(ARGUMENT_0(user));
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
			io.sk = sock_of(ARGUMENT_2(user));
			io.direction = EGRESS;
		} else {
			io.direction = INGRESS;
		}
		break;
	}
	if (!io.sk)
		return 0;
	if (io.direction == INGRESS && flags & (MSG_PEEK_FLAG | MSG_ERRQUEUE_FLAG))
		return 0; /* the position does not move: the same bytes are read again, or are no stream bytes */
	if (flags & MSG_TRUNC_FLAG)
		io.unreadable = true; /* tcp(7): discarded, not copied */
	if (class == CALL_SENDMMSG || class == CALL_RECVMMSG) {
		thread->message_call = class;
		thread->message = 0;
		tail_programs.call(ctx, TAIL_MESSAGES);
		return 0;
	}
	io.position = position_of(&io) - span.size;
	io_done(&io, &span, MAX_SEGMENTS);
	return 0;
}

/* All messages' bytes together; those beyond MAX_MESSAGES show as a jump of the position. */
static __always_inline u32 bytes_of_messages(struct mmsghdr *vector, u32 messages)
{
	u32 total = 0;

	for (int i = 0; i < MAX_MESSAGES; i++) {
		u32 length = 0;

		if (i >= messages)
			break;
		bpf_probe_read_user(&length, sizeof(length), &vector[i].msg_len);
		total += length;
	}
	return total;
}

/*
 * The second half of on_sys_exit for sendmmsg and recvmmsg: a record for each message, with its own length. One message
 * a run, then it calls itself: a loop over messages costs the verifier ten times more with each one (6.18).
 */
int tail_messages(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *user = (struct pt_regs *)ctx->args[0];
	u64 pid_tgid = bpf_get_current_pid_tgid();
	u32 tid = pid_tgid;
	u32 messages = ctx->args[1];
	struct mmsghdr *vector = (struct mmsghdr *)ARGUMENT_1(user);
	struct mmsghdr message = {};
	struct thread *thread = threads.lookup(&tid);
	struct span span = {};
	struct io io = {};

	if (!thread || thread->message >= messages || thread->message >= MAX_MESSAGES)
		return 0;
	io.call = thread->message_call;
	io.enter_ns = thread->enter_ns;
	io.tgid = pid_tgid >> 32;
	io.tid = tid;
	io.direction = io.call == CALL_SENDMMSG ? EGRESS : INGRESS;
	io.sk = sock_of(ARGUMENT_0(user));
	if (!io.sk || bpf_probe_read_user(&message, sizeof(message), &vector[thread->message]))
		return 0;
	if (thread->message == 0)
		thread->position = position_of(&io) - bytes_of_messages(vector, messages);
	io.position = thread->position;
	span.base = (u64)message.msg_hdr.msg_iov;
	span.segments = message.msg_hdr.msg_iovlen;
	span.size = message.msg_len;
	if (span.size)
		io_done(&io, &span, MESSAGE_SEGMENTS);
	thread->position += span.size;
	thread->message++;
	tail_programs.call(ctx, TAIL_MESSAGES);
	return 0;
}
