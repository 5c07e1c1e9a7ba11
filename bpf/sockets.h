/* SPDX-License-Identifier: GPL-2.0-only */
/* From a file descriptor to the socket behind it, and what the socket says of itself. */

#define AF_INET 2
#define AF_INET6 10

/*
 * The struct sock behind an open file, or 0 where it is no socket. A socket and its file point at each other; asking for
 * that is cheaper than for the inode's mode, and nothing else looks like it.
 */
static __always_inline u64 sock_of_file(struct file *file)
{
	struct socket *socket;

	if (!file)
		return 0;
	socket = TYPED(socket, LOAD(TYPED(file, file)->private_data));
	return LOAD(socket->file) == file ? (u64)LOAD(socket->sk) : 0;
}

/* The struct sock behind one of the task's descriptors, or 0 where it is no socket. */
static __always_inline u64 sock_of(struct task_struct *task, int fd)
{
	struct files_struct *files = FIELD(task->files);
	struct fdtable *table = FIELD(files->fdt);
	struct file **slots = FIELD(table->fd);
	struct file *file = 0;

	if (fd < 0 || (u32)fd >= FIELD(table->max_fds))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return sock_of_file(file);
}

static __always_inline bool is_tcp(struct sock *sk)
{
	u16 family = READ(sk->__sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) && READ(sk->sk_protocol) == IPPROTO_TCP;
}

static __always_inline u8 state_of(struct sock *sk)
{
	return READ(sk->__sk_common.skc_state);
}

/* The position after the last byte written: our FIN takes a sequence number but is no byte. */
static __always_inline u32 written_position(struct connection *connection, struct sock *sk)
{
	u64 flags = connection->flags;

	if (flags & CONNECTION_DOWN)
		return connection->last_written;
	return LOAD(TYPED(tcp_sock, sk)->write_seq) - (flags & CONNECTION_FIN ? 1 : 0);
}

/* The position the next byte read will have: the peer's FIN is none, whoever has read it. */
static __always_inline u32 read_position(struct connection *connection, struct sock *sk)
{
	u32 position = LOAD(TYPED(tcp_sock, sk)->copied_seq);

	if (connection->flags & CONNECTION_PEER_FIN && READ(sk->__sk_common.skc_flags) & (1UL << SOCK_DONE) &&
	    position == READ(((struct tcp_sock *)sk)->rcv_nxt))
		position--;
	return position;
}

static __always_inline void describe(struct open_record *open, struct sock *sk)
{
	struct net *net = READ(sk->__sk_common.skc_net.net);

	open->family = READ(sk->__sk_common.skc_family);
	if (open->family == AF_INET) {
		*(u32 *)open->local = READ(sk->__sk_common.skc_rcv_saddr);
		*(u32 *)open->remote = READ(sk->__sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(open->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(open->remote, 16, &sk->__sk_common.skc_v6_daddr);
	}
	/* Not skc_num, which a failing connect has already given back when we are told. */
	open->local_port = bpf_ntohs(READ(((struct inet_sock *)sk)->inet_sport));
	open->remote_port = bpf_ntohs(READ(sk->__sk_common.skc_dport));
	open->state = state_of(sk);
	open->netns = READ(net->ns.inum);
	open->cookie = (u64)sk;
}

/* The remote end of a connect that failed before the socket knew it: what the caller asked for. */
static __always_inline void describe_asked(struct open_record *open, u64 address)
{
	u16 family = 0, port = 0;

	bpf_probe_read_user(&family, sizeof(family), (void *)address);
	bpf_probe_read_user(&port, sizeof(port), (void *)(address + offsetof(struct sockaddr_in, sin_port)));
	open->remote_port = bpf_ntohs(port);
	if (family == AF_INET && open->family == AF_INET)
		bpf_probe_read_user(open->remote, 4, (void *)(address + offsetof(struct sockaddr_in, sin_addr)));
	else if (family == AF_INET6)
		bpf_probe_read_user(open->remote, 16, (void *)(address + offsetof(struct sockaddr_in6, sin6_addr)));
}
