/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Birth, program and death of every process, for the process feed (rover_plugin/discovery/process_events.py).
 * Processes, not threads: a fork counts if the child leads a thread group, an exit if it is the group's last.
 * The sched tracepoints fire only then, so a host that starts nothing pays nothing.
 *
 * Cgroups made and removed come in the same order, so that an event's cgroup id has a path however short the cgroup's
 * life. Listeners are reported where a rule asks for ports (WATCH_LISTENERS).
 */

#define KIND_FORK 1
#define KIND_EXEC 2
#define KIND_EXIT 3
#define KIND_LISTEN 4
#define KIND_CGROUP_MADE 5
#define KIND_CGROUP_REMOVED 6

#define COMM_SIZE 16
#define FILENAME_SIZE 256
#define STRINGS_SIZE 1024
#define CGROUP_PATH_SIZE 1024 /* TRACE_CGROUP_PATH_LEN, kernel/cgroup/cgroup-internal.h */
#define KERNEL_THREAD 0x00200000 /* PF_KTHREAD, include/linux/sched.h */

/* Little-endian, no padding; the reader unpacks it by the same order of fields. */
struct process_event {
	u32 kind;
	u32 tgid;
	u32 parent;    /* fork: who forked; else: the real parent */
	u32 uid;       /* effective */
	u64 start_ns;  /* boot time; /proc/PID/stat shows it in ticks */
	u64 cgroup;    /* id in the unified hierarchy */
	u64 cgroup_v1; /* id in the hierarchy of version 1 where it is deepest, of those of V1_CONTROLLERS; 0 without */
	u32 hierarchy; /* number of that hierarchy */
	u32 pid_namespace;
	/* exec only, else 0: */
	u16 copied;    /* bytes of `strings` */
	u16 arguments; /* argc */
	/* listen only, else 0: */
	u16 port;      /* 0 where listen(2) is still to choose one */
	char comm[COMM_SIZE];
	/* exec only, else not in the record: */
	char filename[FILENAME_SIZE];
	char strings[STRINGS_SIZE]; /* as /proc/PID/cmdline has them; a process may be gone before anybody reads that */
};

#define HEAD_SIZE __builtin_offsetof(struct process_event, filename)

struct cgroup_event {
	u32 kind;
	u32 hierarchy; /* as in /proc/PID/cgroup; 0 is the unified one */
	u64 id;
	char path[CGROUP_PATH_SIZE]; /* from the hierarchy's root, whatever the cgroup namespace of anybody */
};

/*
 * events: records of struct process_event and struct cgroup_event, oldest first; bound RING_PAGES pages, overflow is
 * counted in `lost`.
 */
BPF_RINGBUF_OUTPUT(events, RING_PAGES);

/* lost: records that found the ring full, at index 0. After a loss the reader looks at /proc and at the cgroup trees. */
BPF_ARRAY(lost, u64, 1);

#define READ(from)                                                                     \
	({                                                                             \
		__typeof__(from) value_ = 0;                                           \
		bpf_probe_read_kernel((void *)&value_, sizeof(value_), (void *)&(from)); \
		value_;                                                                \
	})

static __always_inline void count_lost(void)
{
	u32 first = 0;
	u64 *counter = lost.lookup(&first);

	if (counter)
		__sync_fetch_and_add(counter, 1);
}

static __always_inline u64 cgroup_of(struct task_struct *task)
{
	struct css_set *groups = READ(task->cgroups);
	struct cgroup *unified = READ(groups->dfl_cgrp);
	struct kernfs_node *node = READ(unified->kn);

	return READ(node->id);
}

#ifdef V1_CONTROLLERS /* enumerators of cgroup_subsys_id, separated by commas */
/* Not every manager uses every controller: the deepest cgroup says most. */
static __always_inline void describe_v1(struct process_event *event, struct task_struct *task)
{
	struct css_set *groups = READ(task->cgroups);
	u32 controllers[] = {V1_CONTROLLERS};
	int deepest = -1;

#pragma unroll
	for (u32 at = 0; at < sizeof(controllers) / sizeof(controllers[0]); at++) {
		struct cgroup_subsys_state *state = READ(groups->subsys[controllers[at]]);
		struct cgroup *group = READ(state->cgroup);
		int level = READ(group->level);

		if (level > deepest) {
			struct cgroup_root *root = READ(group->root);
			struct kernfs_node *node = READ(group->kn);

			deepest = level;
			event->hierarchy = READ(root->hierarchy_id);
			event->cgroup_v1 = READ(node->id);
		}
	}
}
#else
#define describe_v1(event, task)
#endif

static __always_inline u32 pid_namespace_of(struct task_struct *task)
{
	struct pid *pid = READ(task->thread_pid);
	u32 level = READ(pid->level);
	struct pid_namespace *namespace = READ(pid->numbers[level].ns);

	return READ(namespace->ns.inum);
}

static __always_inline void describe(struct process_event *event, u32 kind, struct task_struct *task, u32 parent)
{
	struct task_struct *leader = READ(task->group_leader);
	/* Without const: READ of a field of something const would be a constant to the compiler, 0. */
	struct cred *cred = (struct cred *)READ(task->cred);

	event->kind = kind;
	event->tgid = READ(task->tgid);
	event->parent = parent;
	event->uid = READ(cred->euid.val);
	event->start_ns = READ(leader->start_boottime);
	event->cgroup = cgroup_of(task);
	event->cgroup_v1 = 0;
	event->hierarchy = 0;
	describe_v1(event, task);
	event->pid_namespace = pid_namespace_of(task);
	event->copied = 0;
	event->arguments = 0;
	event->port = 0;
	bpf_probe_read_kernel(event->comm, sizeof(event->comm), (void *)task->comm);
}

static __always_inline u32 parent_of(struct task_struct *task)
{
	struct task_struct *parent = READ(task->real_parent);

	return READ(parent->tgid);
}

/* sched_process_fork(parent, child) */
int on_sched_process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = (struct task_struct *)ctx->args[0];
	struct task_struct *child = (struct task_struct *)ctx->args[1];
	struct process_event *event;

	if (READ(child->pid) != READ(child->tgid) || READ(child->flags) & KERNEL_THREAD)
		return 0;
	event = events.ringbuf_reserve(HEAD_SIZE);
	if (!event) {
		count_lost();
		return 0;
	}
	describe(event, KIND_FORK, child, READ(parent->tgid));
	events.ringbuf_submit(event, 0);
	return 0;
}

/*
 * The arguments the new program finds on its stack: argc, argv[0], …, NULL, envp[0], …, NULL, and what they point to, one
 * string after the other. They end where the environment begins, and without one at the copy of the file name.
 * Not from mm->arg_start: the BTF of a kernel seen (6.18 for Firecracker) has that 16 bytes off its place.
 */
static __always_inline void copy_arguments(struct process_event *event, struct linux_binprm *program)
{
	u64 stack = READ(program->p), last = READ(program->exec);
	u32 arguments = READ(program->argc);
	u64 start = 0, end = 0, size;

	bpf_probe_read_user(&start, sizeof(start), (void *)(stack + sizeof(u64)));
	bpf_probe_read_user(&end, sizeof(end), (void *)(stack + sizeof(u64) * (2 + (u64)arguments)));
	if (!end)
		end = last;
	/* A 32-bit program's stack has words of half the size: what was read are no addresses. */
	if (start >= end || end > last)
		return;
	size = end - start;
	if (size > STRINGS_SIZE)
		size = STRINGS_SIZE;
	if (bpf_probe_read_user(event->strings, size, (void *)start) == 0) {
		event->copied = size;
		event->arguments = arguments < 0xffff ? arguments : 0xffff;
	}
}

/* sched_process_exec(task, old_pid, bprm): the new program is in place, credentials too. */
int on_sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct linux_binprm *program = (struct linux_binprm *)ctx->args[2];
	struct process_event *event;

	event = events.ringbuf_reserve(sizeof(struct process_event));
	if (!event) {
		count_lost();
		return 0;
	}
	describe(event, KIND_EXEC, task, parent_of(task));
	event->filename[0] = 0;
	bpf_probe_read_kernel_str(event->filename, FILENAME_SIZE, (void *)READ(program->filename));
	copy_arguments(event, program);
	events.ringbuf_submit(event, 0);
	return 0;
}

/* sched_process_exit(task): once per thread, `live` is counted down before. Two last threads may both see 0. */
int on_sched_process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct signal_struct *signal = READ(task->signal);
	struct process_event *event;

	if (READ(signal->live.counter) != 0 || READ(task->flags) & KERNEL_THREAD)
		return 0;
	event = events.ringbuf_reserve(HEAD_SIZE);
	if (!event) {
		count_lost();
		return 0;
	}
	describe(event, KIND_EXIT, task, parent_of(task));
	events.ringbuf_submit(event, 0);
	return 0;
}

#ifdef WATCH_LISTENERS
/*
 * inet_sock_set_state(sk, oldstate, newstate): listen(2) runs in its process, and so does an io_uring worker. It comes
 * before the port is taken for good; a listen(2) that fails afterwards is noticed when the process is looked at again.
 */
int on_inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sock = (struct sock *)ctx->args[0];
	struct task_struct *task;
	struct process_event *event;

	if (ctx->args[2] != TCP_LISTEN || READ(sock->sk_protocol) != IPPROTO_TCP)
		return 0;
	event = events.ringbuf_reserve(HEAD_SIZE);
	if (!event) {
		count_lost();
		return 0;
	}
	task = (struct task_struct *)bpf_get_current_task();
	describe(event, KIND_LISTEN, task, parent_of(task));
	event->port = READ(sock->__sk_common.skc_num);
	events.ringbuf_submit(event, 0);
	return 0;
}
#endif

static __always_inline int report_cgroup(u32 kind, struct cgroup *group, const char *path)
{
	struct cgroup_root *root = READ(group->root);
	struct kernfs_node *node = READ(group->kn);
	struct cgroup_event *event;

	event = events.ringbuf_reserve(sizeof(struct cgroup_event));
	if (!event) {
		count_lost();
		return 0;
	}
	event->kind = kind;
	event->hierarchy = READ(root->hierarchy_id);
	event->id = READ(node->id);
	event->path[0] = 0;
	bpf_probe_read_kernel_str(event->path, CGROUP_PATH_SIZE, (void *)path);
	events.ringbuf_submit(event, 0);
	return 0;
}

/* cgroup_mkdir(cgroup, path): of every hierarchy, before anybody can enter it. */
int on_cgroup_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
	return report_cgroup(KIND_CGROUP_MADE, (struct cgroup *)ctx->args[0], (const char *)ctx->args[1]);
}

/* cgroup_rmdir(cgroup, path) */
int on_cgroup_rmdir(struct bpf_raw_tracepoint_args *ctx)
{
	return report_cgroup(KIND_CGROUP_REMOVED, (struct cgroup *)ctx->args[0], (const char *)ctx->args[1]);
}
