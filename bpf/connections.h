/* SPDX-License-Identifier: GPL-2.0-only */
/* A connection's life: made, announced, closed once, forgotten. */

static __always_inline bool watched(u32 tgid)
{
	return processes.lookup(&tgid) != 0;
}

static __always_inline struct connection *make_connection(u64 sk, u32 tgid, u8 cause, u64 start_ns, u64 open_ns)
{
	struct connection fresh = {};
	int zero = 0;
	u64 *last = last_connection.lookup(&zero);

	if (!last)
		return 0;
	fresh.id = __sync_fetch_and_add(last, 1) + 1;
	fresh.start_ns = start_ns;
	fresh.open_ns = open_ns;
	fresh.tgid = tgid;
	fresh.cause = cause;
	fresh.written = written_position((struct sock *)sk);
	fresh.read = read_position((struct sock *)sk);
	if (connections.update(&sk, &fresh)) {
		count(STAT_CONNECTIONS_FULL);
		return 0;
	}
	return connections.lookup(&sk);
}

static __always_inline union event *event_of(u32 program)
{
	u32 index = bpf_get_smp_processor_id() * PROGRAMS + program;
	union event *event = events.lookup(&index);

	if (event)
		__builtin_memset(event, 0, sizeof(*event));
	return event;
}

/*
 * Puts the open record, once: a connect's outcome and its first call, or its end, may be on two CPUs. A full ring is
 * tried again at the connection's next record.
 */
static __always_inline void announce(struct connection *connection, u64 sk, u32 program)
{
	union event *event;
	struct open_record *open;

	if (connection->flags & CONNECTION_ANNOUNCED)
		return;
	event = event_of(program);
	if (!event || __sync_fetch_and_or(&connection->flags, CONNECTION_ANNOUNCED) & CONNECTION_ANNOUNCED)
		return;
	open = &event->open;
	open->header.kind = RECORD_OPEN;
	open->header.tgid = connection->tgid;
	open->header.connection = connection->id;
	open->header.enter_ns = connection->start_ns;
	open->header.exit_ns = connection->open_ns;
	open->cause = connection->cause;
	open->error = connection->error;
	if (connection->error)
		open->header.flags = OPEN_FAILED;
	open->written = connection->written;
	open->read = connection->read;
	describe(open, (struct sock *)sk);
	if (put(&open->header, sizeof(*open), program))
		__sync_fetch_and_and(&connection->flags, ~CONNECTION_ANNOUNCED);
}

/* The position after the last byte written: the FIN is none. */
static __always_inline u32 last_written(struct connection *connection, u64 sk)
{
	return written_position((struct sock *)sk) - (connection->flags & CONNECTION_FIN ? 1 : 0);
}

/* Puts the close record, once, and the open record where it is still owed. */
static __always_inline void close_connection(struct connection *connection, u64 sk, u64 enter_ns, u64 exit_ns, u32 program)
{
	union event *event;
	struct close_record *close;
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	if (connection->flags & CONNECTION_CLOSED)
		return;
	announce(connection, sk, program);
	if (!(connection->flags & CONNECTION_ANNOUNCED))
		return;
	event = event_of(program);
	if (!event)
		return;
	close = &event->close;
	close->header.kind = RECORD_CLOSE;
	close->header.call = CALL_CLOSE;
	close->header.flags = connection->flags & CONNECTION_BY_PEER ? CLOSE_BY_PEER : 0;
	close->header.tgid = connection->tgid;
	close->header.connection = connection->id;
	close->header.enter_ns = enter_ns;
	close->header.exit_ns = exit_ns;
	close->written = connection->flags & CONNECTION_DOWN ? connection->last_written : last_written(connection, sk);
	close->read = read_position((struct sock *)sk);
	close->retransmitted = READ(tcp->total_retrans);
	close->smoothed_rtt_us = READ(tcp->srtt_us) >> 3;
	close->bytes_received = READ(tcp->bytes_received);
	close->bytes_acked = READ(tcp->bytes_acked);
	/* A full ring is tried again when the socket is destroyed. */
	if (put(&close->header, sizeof(*close), program) == 0)
		__sync_fetch_and_or(&connection->flags, CONNECTION_CLOSED);
}
