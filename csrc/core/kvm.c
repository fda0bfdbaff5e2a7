// SPDX-License-Identifier: MIT
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "arch/arch.h"
#include "cleanup.h"

atomic_uint kc_forks;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void count_fork(void)
{
	atomic_fetch_add_explicit(&kc_forks, 1, memory_order_relaxed);
}

static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, count_fork);
}

int kc_fail_forked(struct kc_error *err)
{
	return kc_fail(
		err, KC_ERR_FORKED,
		"this process is a fork of the one that made this object, and the kernel ties "
		"a virtual machine to the process that made it: open /dev/kvm anew in the child");
}

static int open_device(const char *path, struct kc_error *err)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		return fd;
	switch (errno) {
	case ENOENT:
	case ENODEV:
	case ENXIO:
		kc_fail(err, KC_ERR_NOT_FOUND,
			"there is no KVM device %s: %s, or, in a container, pass the device in "
			"(--device /dev/kvm)",
			path, kc_arch_no_device);
		break;
	case EACCES:
	case EPERM:
		kc_fail(err, KC_ERR_PERMISSION,
			"no permission to open %s: add the user to the group that owns it (sudo usermod "
			"-aG kvm $USER, then log in anew) or allow it (sudo setfacl -m u:$USER:rw %s)",
			path, path);
		break;
	case ENOTDIR:
	case EISDIR:
	case ETXTBSY:
	case EROFS:
		kc_fail(err, KC_ERR_NOT_KVM, "%s is not a KVM device but some other file", path);
		break;
	default:
		return kc_fail_os(err, path);
	}
	err->os_errno = errno;
	return -1;
}

int kc_kvm_open(const char *path, struct kc_kvm **out, struct kc_error *err)
{
	kc_auto_close int fd = -1;
	kc_auto_free struct kc_kvm *kvm = NULL;
	int version, size;

	pthread_once(&fork_once, watch_forks);
	if (strlen(path) >= sizeof(kvm->path))
		return kc_fail(err, KC_ERR_VALUE, "the device's path is too long");
	fd = open_device(path, err);
	if (fd < 0)
		return -1;
	version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (version < 0) {
		kc_fail(err, KC_ERR_NOT_KVM,
			"%s is not a KVM device but some other file: KVM_GET_API_VERSION fails",
			path);
		err->os_errno = ENOTTY;
		return -1;
	}
	if (version != KVM_API_VERSION)
		return kc_fail(err, KC_ERR_VERSION,
			       "%s speaks KVM API version %d, and the only stable one is %d: use a "
			       "kernel since 2.6.22",
			       path, version, KVM_API_VERSION);
	size = ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < 0)
		return kc_fail_os(err, "KVM_GET_VCPU_MMAP_SIZE");
	kvm = calloc(1, sizeof(*kvm));
	if (!kvm)
		return kc_fail(err, KC_ERR_MEMORY, "out of memory");
	atomic_init(&kvm->refs, 1);
	kvm->vcpu_mmap_size = (size_t)size;
	kvm->fork_generation = kc_fork_generation();
	pthread_mutex_init(&kvm->lock, NULL);
	strcpy(kvm->path, path);
	atomic_init(&kvm->fd, fd);
	fd = -1;
	*out = kc_move(kvm);
	return 0;
}

struct kc_kvm *kc_kvm_get(struct kc_kvm *kvm)
{
	atomic_fetch_add_explicit(&kvm->refs, 1, memory_order_relaxed);
	return kvm;
}

void kc_kvm_put(struct kc_kvm *kvm)
{
	if (!kvm || atomic_fetch_sub_explicit(&kvm->refs, 1, memory_order_acq_rel) != 1)
		return;
	kc_kvm_close(kvm);
	free(kvm->supported_cpuid);
	pthread_mutex_destroy(&kvm->lock);
	free(kvm);
}

static void close_device(struct kc_kvm *kvm)
{
	int fd = atomic_exchange(&kvm->fd, -1);

	if (fd >= 0)
		close(fd);
}

/* Under the lock */
static void close_unused(struct kc_kvm *kvm)
{
	if (!kvm->vms && atomic_load(&kvm->closed))
		close_device(kvm);
}

void kc_kvm_close(struct kc_kvm *kvm)
{
	atomic_store(&kvm->closed, true);
	/* In a child of a fork nobody can use it, and the lock may be a thread's of the parent. */
	if (kvm->fork_generation != kc_fork_generation())
		return close_device(kvm);
	kc_hold(&kvm->lock);

	close_unused(kvm);
}

int kc_kvm_enter(struct kc_kvm *kvm, struct kc_error *err)
{
	kc_hold(&kvm->lock);
	int fd = kc_kvm_fd(kvm, err);

	if (fd >= 0)
		kvm->vms++;
	return fd;
}

void kc_kvm_leave(struct kc_kvm *kvm)
{
	if (kvm->fork_generation != kc_fork_generation())
		return;
	kc_hold(&kvm->lock);

	kvm->vms--;
	close_unused(kvm);
}

int kc_kvm_device(struct kc_kvm *kvm, struct kc_error *err)
{
	int fd = atomic_load(&kvm->fd);

	if (fd < 0)
		return kc_fail(err, KC_ERR_CLOSED, "the KVM device was closed");
	if (kc_check_fork(kvm->fork_generation, err))
		return -1;
	return fd;
}

int kc_kvm_fd(struct kc_kvm *kvm, struct kc_error *err)
{
	if (atomic_load(&kvm->closed))
		return kc_fail(err, KC_ERR_CLOSED, "the KVM device was closed");
	return kc_kvm_device(kvm, err);
}

int kc_kvm_check_extension(struct kc_kvm *kvm, unsigned long cap, struct kc_error *err)
{
	int fd = kc_kvm_device(kvm, err), result;

	if (fd < 0)
		return -1;
	result = ioctl(fd, KVM_CHECK_EXTENSION, cap);
	if (result < 0)
		return kc_fail_os(err, "KVM_CHECK_EXTENSION");
	return result;
}
