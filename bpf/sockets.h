/* SPDX-License-Identifier: GPL-2.0-only */
/* From a file descriptor to the socket behind it, and what the socket says of itself. */

#define AF_INET 2
#define AF_INET6 10
#define SOCKET_MODE 0140000
#define MODE_TYPE 0170000

#define READ(from)                                                                     \
	({                                                                             \
		__typeof__(from) value_ = 0;                                           \
		bpf_probe_read_kernel((void *)&value_, sizeof(value_), (void *)&(from)); \
		value_;                                                                \
	})

/* The struct sock behind one of the current task's descriptors, or 0 where it is no socket. */
static __always_inline u64 sock_of(int fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct files_struct *files = READ(task->files);
	struct fdtable *table = READ(files->fdt);
	struct file **slots;
	struct file *file = 0;
	struct inode *inode;
	struct socket *socket;

	if (fd < 0 || (u32)fd >= READ(table->max_fds))
		return 0;
	slots = READ(table->fd);
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	if (!file)
		return 0;
	inode = READ(file->f_inode);
	if ((READ(inode->i_mode) & MODE_TYPE) != SOCKET_MODE)
		return 0;
	socket = READ(file->private_data);
	return (u64)READ(socket->sk);
}

static __always_inline bool is_tcp(struct sock *sk)
{
	u16 family = READ(sk->__sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) && READ(sk->sk_protocol) == IPPROTO_TCP;
}

static __always_inline u32 written_position(struct sock *sk)
{
	return READ(((struct tcp_sock *)sk)->write_seq);
}

static __always_inline u32 read_position(struct sock *sk)
{
	return READ(((struct tcp_sock *)sk)->copied_seq);
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
	open->state = READ(sk->__sk_common.skc_state);
	open->netns = READ(net->ns.inum);
	open->written = written_position(sk);
	open->read = read_position(sk);
	open->cookie = (u64)sk;
}
