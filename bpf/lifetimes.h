/* SPDX-License-Identifier: GPL-2.0-only */
/* TCP state changes: the true moments of connect and close, whoever causes them. */

#define ECONNABORTED_NUMBER 103

/*
 * inet_sock_set_state(sk, oldstate, newstate). Runs in the context of whoever changes the state: the process in connect,
 * close and exit, a softirq in another process's time for everything the peer does.
 */
int on_inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	int old = ctx->args[1];
	int new = ctx->args[2];
	u64 now, enter_ns;
	u32 tid, tgid;
	struct connection *connection;
	struct thread *thread;

	if (new == TCP_SYN_SENT) {
		u64 pid_tgid = bpf_get_current_pid_tgid();

		tid = pid_tgid;
		tgid = pid_tgid >> 32;
		if (!watched(tgid) || !is_tcp((struct sock *)sk))
			return 0;
		thread = threads.lookup(&tid);
		now = bpf_ktime_get_ns();
		enter_ns = thread && thread->call == CALL_CONNECT ? thread->enter_ns : now;
		connection = make_connection(sk, tgid, CAUSE_CONNECT, enter_ns, now);
		if (connection)
			connection->flags |= CONNECTION_PENDING;
		return 0;
	}
	connection = connections.lookup(&sk);
	if (!connection)
		return 0;
	now = bpf_ktime_get_ns();
	if (connection->flags & CONNECTION_PENDING) {
		connection->flags &= ~CONNECTION_PENDING;
		connection->open_ns = now;
		if (new != TCP_ESTABLISHED) {
			int error = READ(((struct sock *)sk)->sk_err);

			/* No error is noted when the owner itself gives up: close of a connecting socket. */
			connection->error = error ? error : ECONNABORTED_NUMBER;
		}
		announce(connection, sk, PROGRAM_STATE);
		if (connection->error)
			connection->flags |= CONNECTION_CLOSED;
		return 0;
	}
	if (new == TCP_CLOSE) {
		tid = bpf_get_current_pid_tgid();
		thread = threads.lookup(&tid);
		/* An own close from a state in which the peer had closed too, or the last step of one already recorded. */
		enter_ns = thread && thread->call == CALL_CLOSE ? thread->enter_ns : now;
		announce(connection, sk, PROGRAM_STATE);
		close_connection(connection, sk, enter_ns, now,
				 old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT ? CLOSE_BY_PEER : 0, PROGRAM_STATE);
		return 0;
	}
	if ((old == TCP_ESTABLISHED && new == TCP_FIN_WAIT1) || (old == TCP_CLOSE_WAIT && new == TCP_LAST_ACK)) {
		/* Always our own doing: close, exit, exec, dup2 over it. Only shutdown leaves the socket in use. */
		tid = bpf_get_current_pid_tgid();
		thread = threads.lookup(&tid);
		if (thread && thread->call == CALL_SHUTDOWN)
			return 0;
		enter_ns = thread && thread->close_ns ? thread->close_ns : now;
		announce(connection, sk, PROGRAM_STATE);
		close_connection(connection, sk, enter_ns, now, 0, PROGRAM_STATE);
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
	if (connection->flags & CONNECTION_ANNOUNCED && !(connection->flags & CONNECTION_CLOSED)) {
		now = bpf_ktime_get_ns();
		close_connection(connection, sk, now, now, 0, PROGRAM_END);
	}
	connections.delete(&sk);
	return 0;
}
