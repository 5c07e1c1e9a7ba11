/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sockets served through io_uring, without a call of ours: their connections are met here, and their bytes show as what
 * the positions of the close record, or of the next call, say. Nothing here runs for who does not use io_uring.
 */
#if IO_URING

/*
 * By opcode (enum io_uring_op of include/uapi/linux/io_uring.h, whose numbers never change): those that move bytes of a
 * socket, and accept. A splice's file is the one written to.
 */
#define OPCODE(number) (1ULL << (number))
#define OPCODES_KNOWN 64 /* bits of a mask; what comes after them is none of these */
#define OPCODE_ACCEPT 13
/* READV, READ_FIXED, RECVMSG, READ, RECV, READ_MULTISHOT, RECV_ZC, READV_FIXED */
#define OPCODES_INGRESS \
	(OPCODE(1) | OPCODE(4) | OPCODE(10) | OPCODE(22) | OPCODE(27) | OPCODE(49) | OPCODE(58) | OPCODE(60))
/* WRITEV, WRITE_FIXED, SENDMSG, WRITE, SEND, SPLICE, SEND_ZC, SENDMSG_ZC, WRITEV_FIXED */
#define OPCODES_EGRESS \
	(OPCODE(2) | OPCODE(5) | OPCODE(9) | OPCODE(23) | OPCODE(26) | OPCODE(30) | OPCODE(47) | OPCODE(48) | OPCODE(61))

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
	u32 number;
	int result;

	if (!request || !watched(tgid))
		return 0;
	result = READ(request->cqe.res);
	number = READ(request->opcode);
	if (result < 0 || number >= OPCODES_KNOWN)
		return 0;
	opcode = OPCODE(number);
	now = bpf_ktime_get_ns();
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
	connection = connection_of(&io, result, PROGRAM_RING);
	if (connection)
		announce(connection, io.sk, PROGRAM_RING);
	return 0;
}

#endif
