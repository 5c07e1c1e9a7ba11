/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Birth, program and death of every process, for the process feed (rover_plugin/discovery/process_events.py).
 * Processes, not threads: a fork counts if the child leads a thread group, an exit if it is the group's last.
 * The sched tracepoints fire only then, so a host that starts nothing pays nothing.
 */

#define KIND_FORK 1
#define KIND_EXEC 2
#define KIND_EXIT 3

#define COMM_SIZE 16
#define FILENAME_SIZE 256
#define STRINGS_SIZE 1024
#define KERNEL_THREAD 0x00200000 /* PF_KTHREAD, include/linux/sched.h */

/* Little-endian, no padding; the reader unpacks it by the same order of fields. */
struct process_event {
	u32 kind;
	u32 tgid;
	u32 parent;    /* fork: who forked; else: the real parent */
	u32 uid;       /* effective */
	u64 start_ns;  /* boot time; /proc/PID/stat shows it in ticks */
	u64 cgroup;    /* id in the unified hierarchy */
	u32 pid_namespace;
	/* exec only, else 0: */
	u16 copied;    /* bytes of `strings` */
	u16 arguments; /* how many of the strings are arguments; the environment's follow */
	char comm[COMM_SIZE];
	/* exec only, else not in the record: */
	char filename[FILENAME_SIZE];
	char strings[STRINGS_SIZE]; /* as /proc/PID/cmdline has them; a process may be gone before anybody reads that */
};

#define HEAD_SIZE __builtin_offsetof(struct process_event, filename)

/* events: records of struct process_event, oldest first; bound RING_PAGES pages, overflow is counted in `lost`. */
BPF_RINGBUF_OUTPUT(events, RING_PAGES);

/* lost: records that found the ring full, at index 0. After a loss the reader looks at /proc. */
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
	event->pid_namespace = pid_namespace_of(task);
	event->copied = 0;
	event->arguments = 0;
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
 * The strings the new program finds on its stack: argc, argv[0], … and what they point to, one string after the other.
 * Not from mm->arg_start: the BTF of a kernel seen (6.18 for Firecracker) has that 16 bytes off its place.
 */
static __always_inline void copy_strings(struct process_event *event, struct linux_binprm *program)
{
	u64 stack = READ(program->p);
	u32 arguments = READ(program->argc);
	u64 start = 0, size;

	bpf_probe_read_user(&start, sizeof(start), (void *)(stack + sizeof(u64)));
	size = READ(program->exec) - start; /* they end where the copy of the file name begins */
	if (size > STRINGS_SIZE)
		size = STRINGS_SIZE;
	if (size && bpf_probe_read_user(event->strings, size, (void *)start) == 0) {
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
	copy_strings(event, program);
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
