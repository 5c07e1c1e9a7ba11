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

/* Puts the open record, once; a full ring is tried again at the connection's next record. */
static __always_inline void announce(struct connection *connection, u64 sk, u32 program)
{
	union event *event;
	struct open_record *open;

	if (connection->flags & CONNECTION_ANNOUNCED)
		return;
	event = event_of(program);
	if (!event)
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
	describe(open, (struct sock *)sk);
	if (put(&open->header, sizeof(*open), program) == 0)
		connection->flags |= CONNECTION_ANNOUNCED;
}

static __always_inline void close_connection(struct connection *connection, u64 sk, u64 enter_ns, u64 exit_ns, u8 flags,
					     u32 program)
{
	union event *event;
	struct close_record *close;
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	if (connection->flags & CONNECTION_CLOSED)
		return;
	event = event_of(program);
	if (!event)
		return;
	close = &event->close;
	close->header.kind = RECORD_CLOSE;
	close->header.call = CALL_CLOSE;
	close->header.flags = flags;
	close->header.tgid = connection->tgid;
	close->header.connection = connection->id;
	close->header.enter_ns = enter_ns;
	close->header.exit_ns = exit_ns;
	close->written = written_position((struct sock *)sk);
	close->read = read_position((struct sock *)sk);
	close->retransmitted = READ(tcp->total_retrans);
	close->smoothed_rtt_us = READ(tcp->srtt_us) >> 3;
	close->bytes_received = READ(tcp->bytes_received);
	close->bytes_acked = READ(tcp->bytes_acked);
	/* A full ring is tried again when the socket is destroyed. */
	if (put(&close->header, sizeof(*close), program) == 0)
		connection->flags |= CONNECTION_CLOSED;
}
