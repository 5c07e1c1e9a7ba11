/* SPDX-License-Identifier: GPL-2.0-only */
/* TCP state changes: the true moments of connect and close, whoever causes them. */

#define ECONNABORTED_NUMBER 103
#define SHUTDOWN_BOTH 3 /* include/net/sock.h SHUTDOWN_MASK */

static __always_inline struct thread *current_thread(void)
{
	u32 tid = bpf_get_current_pid_tgid();

	return threads.lookup(&tid);
}

/* When the current thread began to release this socket: entry of the close(2) or its kin that does it, or 0. */
static __always_inline u64 close_entry(u64 sk)
{
	struct thread *thread = current_thread();

	return thread && (thread->close_sk == sk || thread->close_sk == CLOSES_ANY) ? thread->enter_ns : 0;
}

static __always_inline u64 closing_since(u64 sk, u64 now)
{
	u64 entry = close_entry(sk);

	return entry ? entry : now;
}

static __always_inline bool in_shutdown(u64 sk)
{
	struct thread *thread = current_thread();

	/* close(2) shuts both sides first; io_uring shuts down without a call of ours. */
	return (thread && thread->call == CALL_SHUTDOWN) || READ(((struct sock *)sk)->sk_shutdown) != SHUTDOWN_BOTH;
}

static __always_inline void connecting(u64 sk)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct connection *connection;
	struct thread *thread;
	u64 now;

	if (!watched(tgid) || !is_tcp((struct sock *)sk))
		return;
	thread = current_thread();
	now = bpf_ktime_get_ns();
	connection = make_connection(sk, tgid, CAUSE_CONNECT,
				     thread && thread->call == CALL_CONNECT ? thread->enter_ns : now, now);
	if (connection)
		set(connection, CONNECTION_PENDING);
}

/* The outcome of a connect. */
static __always_inline void connected(struct connection *connection, u64 sk, bool established, u32 program)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	struct thread *thread;
	int error;

	connection->open_ns = bpf_ktime_get_ns();
	if (!established) {
		error = READ(((struct sock *)sk)->sk_err);
		thread = error ? 0 : current_thread();
		if (thread && thread->call == CALL_CONNECT)
			return; /* no port, no route: the call's result will say why */
		/* No error is noted when the owner itself gives up: close of a connecting socket. */
		connection->error = error ? error : ECONNABORTED_NUMBER;
	}
	/* The SYN counts among the bytes acknowledged. Not write_seq: fast open may have written already. */
	connection->written = READ(tcp->snd_una) - (u32)READ(tcp->bytes_acked) + 1;
	connection->read = READ(tcp->copied_seq);
	clear(connection, CONNECTION_PENDING);
	announce(connection, sk, program);
}

/*
 * The connection is over for TCP, but its owner may hold the socket on and read what had come before: after a reset, or
 * after both sides were shut down. Its end is recorded when the socket goes.
 */
static __always_inline void down(struct connection *connection, u64 sk, int old)
{
	u64 flags = CONNECTION_DOWN | CONNECTION_PEER_FIN;
	u64 now;

	/* The kernel uses write_seq for other things in the next connection of this socket. */
	connection->last_written = written_position(connection, (struct sock *)sk);
	if (READ(((struct sock *)sk)->sk_err))
		flags |= CONNECTION_BY_PEER;
	if (old == TCP_FIN_WAIT2 && !close_entry(sk))
		flags |= CONNECTION_PEER_ENDED; /* after our shutdown(2) */
	set(connection, flags);
	if (flags & CONNECTION_BY_PEER || old == TCP_FIN_WAIT2 || old == TCP_CLOSING || old == TCP_LAST_ACK)
		return;
	/* The owner aborts it (SO_LINGER 0, unread bytes): positions and counters will not outlive this moment. */
	now = bpf_ktime_get_ns();
	close_connection(connection, sk, closing_since(sk, now), now, PROGRAM_STATE);
}

/*
 * inet_sock_set_state(sk, oldstate, newstate). Runs in the context of whoever changes the state: the process in connect,
 * close and exit, a softirq in another process's time for everything the peer does.
 */
int on_inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	int old = ctx->args[1];
	int new = ctx->args[2];
	struct connection *connection;
	u64 now;

	if (new == TCP_SYN_SENT) {
		connecting(sk);
		return 0;
	}
	connection = connections.lookup(&sk);
	if (!connection)
		return 0;
	if (old == TCP_SYN_SENT || old == TCP_SYN_RECV) {
		/* SYN_RECV: both ends connect at once, the outcome is still open. */
		if (connection->flags & CONNECTION_PENDING && new != TCP_SYN_RECV)
			connected(connection, sk, new == TCP_ESTABLISHED, PROGRAM_STATE);
		return 0;
	}
	switch (new) {
	case TCP_CLOSE:
		down(connection, sk, old);
		break;
	case TCP_CLOSE_WAIT:
	case TCP_CLOSING:
		set(connection, CONNECTION_PEER_FIN | CONNECTION_PEER_ENDED);
		break;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		/* Always our own doing: close, exit, exec, dup2 over it. Only shutdown leaves the socket in use. */
		if (!in_shutdown(sk)) {
			now = bpf_ktime_get_ns();
			if (close_connection(connection, sk, closing_since(sk, now), now, PROGRAM_STATE))
				break;
		}
		set(connection, new == TCP_FIN_WAIT1 ? CONNECTION_FIN | CONNECTION_SHUT_FIRST : CONNECTION_FIN);
		break;
	}
	return 0;
}

/* tcp_destroy_sock(sk): the socket's memory goes; its address may come back for another connection. */
int on_tcp_destroy_sock(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	struct connection *connection = connections.lookup(&sk);
	u64 now;

	if (!connection)
		return 0;
	if (connection->flags & CONNECTION_PENDING)
		connection->error = ECONNABORTED_NUMBER;
	now = bpf_ktime_get_ns();
	if (connection->error && !(connection->flags & CONNECTION_ANNOUNCED))
		announce(connection, sk, PROGRAM_END);
	else
		close_connection(connection, sk, closing_since(sk, now), now, PROGRAM_END);
	connections.delete(&sk);
	return 0;
}
