// SPDX-License-Identifier: MIT
#include "perf.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int kc_perf_open(const struct kc_perf_event *event, pid_t thread)
{
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.type = event->type,
		.config = event->config,
		.sample_period = event->period,
		.read_format = PERF_FORMAT_GROUP,
		.disabled = event->disabled,
		.pinned = event->group < 0,
		.exclude_host = event->guest_only,
		.exclude_hv = 1,
		.wakeup_events = 1,
	};

	return (int)syscall(SYS_perf_event_open, &attr, thread, -1, event->group,
			    PERF_FLAG_FD_CLOEXEC);
}

int kc_perf_signal(int fd, pid_t thread, int signal)
{
	struct f_owner_ex owner = { .type = F_OWNER_TID, .pid = thread };
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETSIG, signal) || fcntl(fd, F_SETOWN_EX, &owner) ||
	    fcntl(fd, F_SETFL, flags | O_ASYNC))
		return -1;
	return 0;
}

static int paranoid_level(void)
{
	FILE *file = fopen("/proc/sys/kernel/perf_event_paranoid", "re");
	int level = -2;

	if (!file)
		return level;
	if (fscanf(file, "%d", &level) != 1)
		level = -2;
	fclose(file);
	return level;
}

static bool under_seccomp(void)
{
	return prctl(PR_GET_SECCOMP, 0, 0, 0, 0) > 0;
}

static bool in_container(void)
{
	return access("/.dockerenv", F_OK) == 0 || access("/run/.containerenv", F_OK) == 0;
}

void kc_perf_explain(int error, char *text, size_t size)
{
	switch (error) {
	case ENOENT:
	case EOPNOTSUPP:
	case ENODEV:
	case EINVAL:
		snprintf(
			text, size,
			"this host has no such counter (%s): most virtual machines give their guests no "
			"performance monitoring unit",
			strerrorname_np(error));
		break;
	case EACCES:
	case EPERM:
		if (under_seccomp())
			snprintf(
				text, size,
				"a seccomp filter forbids perf_event_open (%s)%s: run the %s with a "
				"profile that allows it (docker run --security-opt seccomp=..., "
				"--cap-add PERFMON)",
				strerrorname_np(error), in_container() ? ", as containers' do" : "",
				in_container() ? "container" : "process");
		else
			snprintf(
				text, size,
				"the kernel forbids it (%s), kernel.perf_event_paranoid is %d: lower it "
				"(sudo sysctl kernel.perf_event_paranoid=1) or give the process "
				"CAP_PERFMON",
				strerrorname_np(error), paranoid_level());
		break;
	case ENOSYS:
		snprintf(text, size, "this kernel has no perf_event_open, or %s hides it (ENOSYS)",
			 in_container() ? "the container" : "a filter");
		break;
	case EBUSY:
		snprintf(text, size, "another user holds the counters exclusively (EBUSY)");
		break;
	case EMFILE:
		snprintf(text, size, "too many open files (EMFILE): raise ulimit -n");
		break;
	default:
		snprintf(text, size, "perf_event_open: %s", strerror(error));
	}
}

int kc_perf_fail(int error, struct kc_error *err)
{
	char text[384];

	kc_perf_explain(error, text, sizeof(text));
	kc_fail(err, KC_ERR_UNSUPPORTED, "perf_event_open: %s", text);
	err->os_errno = error;
	return -1;
}
