/* SPDX-License-Identifier: GPL-2.0-only */
/* A connection's life: made, announced, closed once, forgotten. */

static __always_inline bool watched(u32 tgid)
{
	return processes.lookup(&tgid) != 0;
}

/* Whether the feed has named this process, and not only its birth made us watch it. */
static __always_inline bool chosen(u32 tgid)
{
	u32 *watch = processes.lookup(&tgid);

	return watch && *watch == WATCH_DECIDED;
}

static __always_inline void set(struct connection *connection, u64 flags)
{
	__sync_fetch_and_or(&connection->flags, flags);
}

static __always_inline bool is_provisional(struct connection *connection)
{
	return connection->flags & CONNECTION_PROVISIONAL;
}

static __always_inline void clear(struct connection *connection, u64 flags)
{
	__sync_fetch_and_and(&connection->flags, ~flags);
}

/* What the state of a socket that we have not followed says of it. */
static __always_inline u64 flags_of(u8 state)
{
	switch (state) {
	case TCP_CLOSE_WAIT:
		return CONNECTION_PEER_FIN | CONNECTION_PEER_ENDED;
	case TCP_FIN_WAIT1:
	case TCP_FIN_WAIT2:
		return CONNECTION_FIN | CONNECTION_SHUT_FIRST;
	case TCP_CLOSING:
		return CONNECTION_FIN | CONNECTION_SHUT_FIRST | CONNECTION_PEER_FIN | CONNECTION_PEER_ENDED;
	case TCP_LAST_ACK:
		return CONNECTION_FIN | CONNECTION_PEER_FIN | CONNECTION_PEER_ENDED;
	case TCP_CLOSE:
		return CONNECTION_PEER_FIN | CONNECTION_DOWN;
	}
	return 0;
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
	if (!chosen(tgid))
		fresh.flags = CONNECTION_PROVISIONAL;
	if (cause != CAUSE_CONNECT) {
		fresh.last_written = READ(((struct tcp_sock *)sk)->write_seq);
		fresh.flags |= flags_of(state_of((struct sock *)sk));
		if (fresh.flags & CONNECTION_DOWN && READ(((struct sock *)sk)->sk_err))
			fresh.flags |= CONNECTION_BY_PEER;
		fresh.written = written_position(&fresh, (struct sock *)sk);
		fresh.read = read_position(&fresh, (struct sock *)sk);
	}
	if (cause == CAUSE_MET) {
		/* Two threads may meet it at once: the first makes it. */
		connections.insert(&sk, &fresh);
	} else if (connections.update(&sk, &fresh)) {
		count(STAT_CONNECTIONS_FULL);
		return 0;
	}
	struct connection *made = connections.lookup(&sk);

	if (!made)
		count(STAT_CONNECTIONS_FULL);
	return made;
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
 * Where both streams of a connection met midway began. The kernel counts the client's SYN among the bytes acknowledged,
 * and no SYN of a server. The counters move while we read; where two readings differ, nothing is said.
 */
static __always_inline bool find_beginnings(struct met_record *met, struct tcp_sock *tcp)
{
	met->first_written = READ(tcp->snd_una) - (u32)READ(tcp->bytes_acked);
	met->first_read = READ(tcp->rcv_nxt) - (u32)READ(tcp->bytes_received);
	return met->first_written == READ(tcp->snd_una) - (u32)READ(tcp->bytes_acked) &&
	       met->first_read == READ(tcp->rcv_nxt) - (u32)READ(tcp->bytes_received);
}

/*
 * A provisional connection whose process has been chosen meanwhile, or which a chosen one uses, is as good as any from
 * here on. It is announced again: the reader may have thrown away what it was told before.
 */
static __always_inline void promote(struct connection *connection, u32 program)
{
	if (chosen(connection->tgid) ||
	    (program != PROGRAM_STATE && program != PROGRAM_END && chosen(bpf_get_current_pid_tgid() >> 32)))
		clear(connection, CONNECTION_PROVISIONAL | CONNECTION_ANNOUNCED);
}

/*
 * Puts the open record, once: two threads may do a connection's first I/O. A full ring is tried again at the connection's
 * next record. `asked` is the user's sockaddr of a connect that failed before the socket knew it, else 0.
 */
static __always_inline void announce_asked(struct connection *connection, u64 sk, u32 program, u64 asked)
{
	union event *event;
	struct open_record *open;
	u64 size = sizeof(*open);

	if (is_provisional(connection))
		promote(connection, program);
	if (connection->flags & CONNECTION_ANNOUNCED)
		return;
	event = event_of(program);
	if (!event || __sync_fetch_and_or(&connection->flags, CONNECTION_ANNOUNCED) & CONNECTION_ANNOUNCED)
		return;
	open = &event->open;
	open->header.kind = RECORD_OPEN;
	open->header.tgid = connection->tgid;
	open->header.connection = connection->id;
	open->header.provisional = is_provisional(connection);
	open->header.enter_ns = connection->start_ns;
	open->header.exit_ns = connection->open_ns;
	open->cause = connection->cause;
	open->error = connection->error;
	if (connection->error)
		open->header.flags = OPEN_FAILED;
	open->written = connection->written;
	open->read = connection->read;
	describe(open, (struct sock *)sk);
	if (asked && open->remote_port == 0)
		describe_asked(open, asked);
	if (connection->cause == CAUSE_MET && find_beginnings(&event->met, (struct tcp_sock *)sk)) {
		open->header.flags = OPEN_BEGINNINGS;
		size = sizeof(event->met);
	}
	if (put(&open->header, connection, size, program))
		clear(connection, CONNECTION_ANNOUNCED);
	else if (connection->error)
		set(connection, CONNECTION_CLOSED);
}

static __always_inline void announce(struct connection *connection, u64 sk, u32 program)
{
	announce_asked(connection, sk, program, 0);
}

/*
 * Puts the close record, and before it the open record where it is still owed; then forgets the connection. A full ring
 * is tried again when the socket is destroyed. Returns whether it is forgotten; then `connection` may be another's.
 */
static __always_inline bool close_connection(struct connection *connection, u64 sk, u64 enter_ns, u64 exit_ns, u32 program)
{
	union event *event;
	struct close_record *close;
	struct tcp_sock *tcp = (struct tcp_sock *)sk;

	if (connection->flags & CONNECTION_CLOSED)
		return false;
	announce(connection, sk, program);
	if (!(connection->flags & CONNECTION_ANNOUNCED))
		return false;
	event = event_of(program);
	if (!event)
		return false;
	close = &event->close;
	close->header.kind = RECORD_CLOSE;
	close->header.call = CALL_CLOSE;
	if (connection->flags & CONNECTION_BY_PEER)
		close->header.flags = CLOSE_BY_PEER;
	else if (connection->flags & CONNECTION_PEER_ENDED)
		close->header.flags = CLOSE_PEER_ENDED |
				      (connection->flags & CONNECTION_SHUT_FIRST ? CLOSE_SHUT_FIRST : 0);
	close->header.tgid = connection->tgid;
	close->header.connection = connection->id;
	close->header.provisional = is_provisional(connection);
	close->header.enter_ns = enter_ns;
	close->header.exit_ns = exit_ns;
	close->written = written_position(connection, (struct sock *)sk);
	close->read = read_position(connection, (struct sock *)sk);
	close->retransmitted = READ(tcp->total_retrans);
	close->smoothed_rtt_us = READ(tcp->srtt_us) >> 3;
	close->bytes_received = READ(tcp->bytes_received);
	close->bytes_acked = READ(tcp->bytes_acked);
	if (put(&close->header, connection, sizeof(*close), program))
		return false;
	connections.delete(&sk);
	return true;
}
