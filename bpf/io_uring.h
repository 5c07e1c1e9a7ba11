/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sockets served through io_uring, without a call of ours: their connections are met here, and their bytes show as what
 * the positions of the close record, or of the next call, say. Nothing here runs for who does not use io_uring.
 */
#if IO_URING

/* By opcode (enum io_uring_op, whose numbers never change): those that move bytes of a socket, and accept. */
#define OPCODE(number) (1ULL << (number))
#define OPCODE_ACCEPT 13
#define OPCODES_INGRESS (OPCODE(1) | OPCODE(4) | OPCODE(10) | OPCODE(22) | OPCODE(27)) /* READV .. RECV */
#define OPCODES_EGRESS (OPCODE(2) | OPCODE(5) | OPCODE(9) | OPCODE(23) | OPCODE(26) | OPCODE(47) | OPCODE(48)) /* WRITEV .. */

static __always_inline u16 port_of(u64 sk)
{
	return READ(((struct sock *)sk)->__sk_common.skc_num);
}

/*
 * io_uring_complete(ctx, req, ...): in the context of the ring's owner, or of a worker of its process. Later results of
 * one multishot request come without the request.
 */
int on_io_uring_complete(struct bpf_raw_tracepoint_args *ctx)
{
	struct io_kiocb *request = (struct io_kiocb *)ctx->args[1];
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 now, opcode, sk, fresh;
	struct connection *connection;
	struct io io = {};
	int result;

	if (!request || !watched(tgid))
		return 0;
	result = READ(request->cqe.res);
	opcode = OPCODE(READ(request->opcode) & 63);
	now = bpf_ktime_get_ns();
	if (result < 0)
		return 0;
	sk = sock_of_file(READ(request->file));
	if (!sk)
		return 0;
	if (opcode == OPCODE(OPCODE_ACCEPT)) {
		/* Without a descriptor, in a slot of the ring, it is met at its first I/O. */
		fresh = sock_of(CURRENT_TASK(), result);
		if (fresh && port_of(fresh) == port_of(sk) && !connections.lookup(&fresh))
			accepted(tgid, fresh, now, PROGRAM_RING);
		return 0;
	}
	if (result == 0 || !(opcode & (OPCODES_INGRESS | OPCODES_EGRESS)))
		return 0;
	io.sk = sk;
	io.tgid = tgid;
	io.direction = opcode & OPCODES_EGRESS ? EGRESS : INGRESS;
	connection = connection_of(&io, result);
	if (connection)
		announce(connection, io.sk, PROGRAM_RING);
	return 0;
}

#endif
