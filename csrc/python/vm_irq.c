// SPDX-License-Identifier: MIT
/* The VM's interrupt controllers, lines, messages, routes, and the two kinds of eventfd. */
#include "vm_parts.h"

#include <string.h>

#include "irq.h"

PyObject *pc_vm_create_irqchip(PyObject *self, PyObject *unused)
{
	struct kc_error err;
	struct pc_gil gil;
	int failed;

	pc_release(&gil, NULL); /* it waits for a grace period of the kernel */
	failed = kc_irq_create_chip(pc_vm_core(self), &err);
	pc_acquire(&gil);
	return pc_vm_done(self, failed, &err);
}

PyObject *pc_vm_create_pit(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "speaker_dummy", NULL };
	int speaker_dummy = 0, failed;
	struct kc_error err;
	struct pc_gil gil;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$p:create_pit", names, &speaker_dummy))
		return NULL;
	pc_release(&gil, NULL);
	failed = kc_irq_create_pit(pc_vm_core(self), speaker_dummy, &err);
	pc_acquire(&gil);
	return pc_vm_done(self, failed, &err);
}

/* Two numbers, as the methods below take them. */
static int two_numbers(PyObject *const *args, Py_ssize_t nargs, const char *method,
		       const char *const names[2], const uint64_t limits[2], uint64_t numbers[2])
{
	if (nargs != 2) {
		PyErr_Format(PyExc_TypeError, "%s() takes %s and %s, not %zd arguments", method,
			     names[0], names[1], nargs);
		return -1;
	}
	return pc_uint(args[0], names[0], limits[0], &numbers[0]) ||
	       pc_uint(args[1], names[1], limits[1], &numbers[1]);
}

/* These two keep the interpreter lock: they are short, and taking it back may not be. */
PyObject *pc_vm_irq_line(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	uint64_t numbers[2];
	struct kc_error err;

	if (two_numbers(args, nargs, "irq_line", (const char *const[]){ "gsi", "level" },
			(const uint64_t[]){ UINT32_MAX, 1 }, numbers))
		return NULL;
	return pc_vm_done(self,
			  kc_irq_line(pc_vm_core(self), (uint32_t)numbers[0], (uint32_t)numbers[1],
				      &err) < 0,
			  &err);
}

PyObject *pc_vm_signal_msi(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	uint64_t numbers[2];
	struct kc_error err;
	int count;

	if (two_numbers(args, nargs, "signal_msi", (const char *const[]){ "address", "data" },
			(const uint64_t[]){ UINT64_MAX, UINT32_MAX }, numbers))
		return NULL;
	count = kc_irq_msi(pc_vm_core(self), numbers[0], (uint32_t)numbers[1], &err);
	return count < 0 ? pc_vm_fail(self, &err) : PyLong_FromLong(count);
}

static int parse_route(PyObject *route, struct kvm_irq_routing_entry *entry)
{
	PyObject *gsi_arg, *kind, *first, *second;
	uint64_t gsi, a, b;
	bool msi;

	if (!PyTuple_Check(route) || PyTuple_GET_SIZE(route) != 4) {
		PyErr_Format(
			PyExc_TypeError,
			"a route is (gsi, \"irqchip\", chip, pin) or (gsi, \"msi\", address, data), "
			"not %R",
			route);
		return -1;
	}
	gsi_arg = PyTuple_GET_ITEM(route, 0);
	kind = PyTuple_GET_ITEM(route, 1);
	first = PyTuple_GET_ITEM(route, 2);
	second = PyTuple_GET_ITEM(route, 3);
	msi = PyUnicode_Check(kind) && !PyUnicode_CompareWithASCIIString(kind, "msi");
	if (!msi &&
	    !(PyUnicode_Check(kind) && !PyUnicode_CompareWithASCIIString(kind, "irqchip"))) {
		PyErr_Format(PyExc_ValueError, "a route's kind is 'irqchip' or 'msi', not %R",
			     kind);
		return -1;
	}
	if (pc_uint(gsi_arg, "a route's gsi", UINT32_MAX, &gsi) ||
	    pc_uint(first, msi ? "a route's address" : "a route's chip",
		    msi ? UINT64_MAX : UINT32_MAX, &a) ||
	    pc_uint(second, msi ? "a route's data" : "a route's pin", UINT32_MAX, &b))
		return -1;
	entry->gsi = (uint32_t)gsi;
	if (msi) {
		entry->type = KVM_IRQ_ROUTING_MSI;
		entry->u.msi.address_lo = (uint32_t)a;
		entry->u.msi.address_hi = (uint32_t)(a >> 32);
		entry->u.msi.data = (uint32_t)b;
	} else {
		entry->type = KVM_IRQ_ROUTING_IRQCHIP;
		entry->u.irqchip.irqchip = (uint32_t)a;
		entry->u.irqchip.pin = (uint32_t)b;
	}
	return 0;
}

PyObject *pc_vm_set_gsi_routing(PyObject *self, PyObject *arg)
{
	kc_auto_free struct kvm_irq_routing_entry *entries = NULL;
	PyObject *routes = PySequence_Tuple(arg); /* a copy: numbers' __index__ may change a list */
	struct kc_error err;
	struct pc_gil gil;
	Py_ssize_t count;
	int failed = 0;

	if (!routes)
		return NULL;
	count = PyTuple_GET_SIZE(routes);
	entries = calloc((size_t)count + 1, sizeof(*entries));
	if (!entries) {
		Py_DECREF(routes);
		return PyErr_NoMemory();
	}
	for (Py_ssize_t i = 0; i < count && !failed; i++)
		failed = parse_route(PyTuple_GET_ITEM(routes, i), &entries[i]);
	Py_DECREF(routes);
	if (failed)
		return NULL;
	pc_release(&gil, NULL);
	failed = kc_irq_set_routing(pc_vm_core(self), entries, (size_t)count, &err);
	pc_acquire(&gil);
	return pc_vm_done(self, failed, &err);
}

/* A file descriptor, or an object that has one; None: -1. */
static int parse_fd(PyObject *value, int *fd)
{
	*fd = -1;
	if (value == Py_None)
		return 0;
	*fd = PyObject_AsFileDescriptor(value);
	return *fd < 0 ? -1 : 0;
}

PyObject *pc_vm_irqfd(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "gsi", "fd", "resample", NULL };
	PyObject *gsi_arg, *fd_arg = Py_None, *resample_arg = Py_None;
	struct kc_error err;
	struct pc_gil gil;
	int fd, resample;
	uint64_t gsi;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O$O:irqfd", names, &gsi_arg, &fd_arg,
					 &resample_arg) ||
	    pc_uint(gsi_arg, "gsi", UINT32_MAX, &gsi) || parse_fd(fd_arg, &fd) ||
	    parse_fd(resample_arg, &resample))
		return NULL;
	pc_release(&gil, NULL);
	fd = kc_irq_fd(pc_vm_core(self), (uint32_t)gsi, fd, resample, false, &err);
	pc_acquire(&gil);
	return fd < 0 ? pc_vm_fail(self, &err) : PyLong_FromLong(fd);
}

PyObject *pc_vm_remove_irqfd(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	struct kc_error err;
	struct pc_gil gil;
	uint64_t gsi;
	int fd;

	if (nargs != 2) {
		PyErr_Format(PyExc_TypeError,
			     "remove_irqfd() takes a gsi and an fd, not %zd arguments", nargs);
		return NULL;
	}
	if (pc_uint(args[0], "gsi", UINT32_MAX, &gsi))
		return NULL;
	fd = PyObject_AsFileDescriptor(args[1]);
	if (fd < 0)
		return NULL;
	pc_release(&gil, NULL);
	fd = kc_irq_fd(pc_vm_core(self), (uint32_t)gsi, fd, -1, true, &err);
	pc_acquire(&gil);
	return pc_vm_done(self, fd < 0, &err);
}

/* ioeventfd() and remove_ioeventfd() differ in whether the fd may be missing. */
static int set_ioeventfd(PyObject *self, PyObject *args, PyObject *kwargs, bool remove)
{
	static char *names[] = { "address", "size", "fd", "value", "io", NULL };
	PyObject *address_arg, *size_arg, *fd_arg = Py_None, *value_arg = Py_None;
	uint64_t address, size, value = 0;
	struct kc_error err;
	struct pc_gil gil;
	int io = 0, fd;

	if (!PyArg_ParseTupleAndKeywords(
		    args, kwargs, remove ? "OOO|$Op:remove_ioeventfd" : "OO|O$Op:ioeventfd", names,
		    &address_arg, &size_arg, &fd_arg, &value_arg, &io) ||
	    pc_u64(address_arg, "address", &address) || pc_uint(size_arg, "size", 8, &size) ||
	    (value_arg != Py_None && pc_u64(value_arg, "value", &value)))
		return -1;
	if (remove && fd_arg == Py_None) {
		PyErr_SetString(PyExc_TypeError, "remove_ioeventfd() needs the fd");
		return -1;
	}
	if (parse_fd(fd_arg, &fd))
		return -1;
	pc_release(&gil, NULL);
	fd = kc_irq_ioeventfd(pc_vm_core(self), address, (uint32_t)size, fd,
			      value_arg == Py_None ? NULL : &value, io, remove, &err);
	pc_acquire(&gil);
	if (fd < 0)
		pc_vm_fail(self, &err);
	return fd;
}

PyObject *pc_vm_ioeventfd(PyObject *self, PyObject *args, PyObject *kwargs)
{
	int fd = set_ioeventfd(self, args, kwargs, false);

	return fd < 0 ? NULL : PyLong_FromLong(fd);
}

PyObject *pc_vm_remove_ioeventfd(PyObject *self, PyObject *args, PyObject *kwargs)
{
	if (set_ioeventfd(self, args, kwargs, true) < 0)
		return NULL;
	Py_RETURN_NONE;
}
