// SPDX-License-Identifier: MIT
#include "module.h"

static struct kc_sink *sink_of(PyObject *self)
{
	struct kc_sink *sink = ((struct pc_sink *)self)->sink;

	if (!sink)
		PyErr_SetString(PyExc_RuntimeError, "ByteSink.__init__() was not called");
	return sink;
}

static int init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "limit", "fd", NULL };
	struct pc_sink *object = (struct pc_sink *)self;
	struct kc_sink *sink, *old = object->sink;
	PyObject *limit_arg = NULL, *fd_arg = Py_None;
	uint64_t limit = 16777216;
	struct kc_error err;
	int fd = -1;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OO:ByteSink", names, &limit_arg,
					 &fd_arg) ||
	    (limit_arg && pc_uint(limit_arg, "limit", PY_SSIZE_T_MAX, &limit)))
		return -1;
	if (fd_arg != Py_None) {
		fd = PyObject_AsFileDescriptor(fd_arg);
		if (fd < 0)
			return -1;
	}
	sink = kc_sink_create((size_t)limit, fd, &err);
	if (!sink) {
		pc_raise(pc_state_of_type(Py_TYPE(self)), &err, NULL);
		return -1;
	}
	object->sink = sink;
	kc_sink_put(old);
	return 0;
}

static void dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	kc_sink_put(((struct pc_sink *)self)->sink);
	type->tp_free(self);
	Py_DECREF(type);
}

/* The bytes that are kept; guests may go on writing meanwhile. */
static PyObject *copy(PyObject *self, bool take)
{
	struct kc_sink *sink = sink_of(self);
	size_t size, length;
	struct pc_gil gil;
	PyObject *bytes;

	if (!sink)
		return NULL;
	length = kc_sink_length(sink);
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
	if (!bytes)
		return NULL;
	/* Without the interpreter lock: it may be megabytes. The sink lives as long as self. */
	pc_release(&gil, NULL);
	size = kc_sink_read(sink, (uint8_t *)PyBytes_AS_STRING(bytes), length, take);
	pc_acquire(&gil);
	if (size < length)
		_PyBytes_Resize(&bytes, (Py_ssize_t)size);
	return bytes;
}

static PyObject *getvalue(PyObject *self, PyObject *unused)
{
	return copy(self, false);
}

static PyObject *clear(PyObject *self, PyObject *unused)
{
	return copy(self, true);
}

static PyObject *write_bytes(PyObject *self, PyObject *data)
{
	struct kc_sink *sink = sink_of(self);
	struct pc_gil gil;
	Py_buffer view;

	if (!sink || PyObject_GetBuffer(data, &view, PyBUF_SIMPLE))
		return NULL;
	if (sink->fd < 0) {
		kc_sink_append(sink, view.buf, (size_t)view.len);
	} else {
		/* The file may be slow. */
		pc_release(&gil, NULL);
		kc_sink_append(sink, view.buf, (size_t)view.len);
		pc_acquire(&gil);
	}
	PyBuffer_Release(&view);
	Py_RETURN_NONE;
}

static PyObject *get_text(PyObject *self, void *unused)
{
	PyObject *bytes = copy(self, false), *text;

	if (!bytes)
		return NULL;
	text = PyUnicode_DecodeUTF8(PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes), "replace");
	Py_DECREF(bytes);
	return text;
}

static PyObject *number(struct kc_sink *sink, const uint64_t *field)
{
	uint64_t value;

	kc_mutex_lock(&sink->lock);
	value = *field;
	kc_mutex_unlock(&sink->lock);
	return PyLong_FromUnsignedLongLong(value);
}

static PyObject *get_total(PyObject *self, void *unused)
{
	struct kc_sink *sink = sink_of(self);

	return sink ? number(sink, &sink->total) : NULL;
}

static PyObject *get_dropped(PyObject *self, void *unused)
{
	struct kc_sink *sink = sink_of(self);

	return sink ? number(sink, &sink->dropped) : NULL;
}

static Py_ssize_t length(PyObject *self)
{
	struct kc_sink *sink = sink_of(self);

	return sink ? (Py_ssize_t)kc_sink_length(sink) : -1;
}

static PyObject *repr(PyObject *self)
{
	struct kc_sink *sink = ((struct pc_sink *)self)->sink;

	if (!sink)
		return PyUnicode_FromString("<ByteSink, not initialized>");
	return PyUnicode_FromFormat("<ByteSink %zu bytes>", kc_sink_length(sink));
}

static PyMethodDef methods[] = {
	{ "getvalue", getvalue, METH_NOARGS, DOC_ByteSink_getvalue },
	{ "clear", clear, METH_NOARGS, DOC_ByteSink_clear },
	{ "write", write_bytes, METH_O, DOC_ByteSink_write },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef properties[] = {
	{ "text", get_text, NULL, DOC_ByteSink_text, NULL },
	{ "total", get_total, NULL, DOC_ByteSink_total, NULL },
	{ "dropped", get_dropped, NULL, DOC_ByteSink_dropped, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot slots[] = {
	{ Py_tp_doc, (void *)DOC_ByteSink },
	{ Py_tp_new, PyType_GenericNew },
	{ Py_tp_init, init },
	{ Py_tp_dealloc, dealloc },
	{ Py_tp_repr, repr },
	{ Py_tp_methods, methods },
	{ Py_tp_getset, properties },
	{ Py_mp_length, length },
	{ 0, NULL },
};

static PyType_Spec spec = {
	.name = "kvmcpu._kvm.ByteSink",
	.basicsize = sizeof(struct pc_sink),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = slots,
};

int pc_sink_init(PyObject *module, struct pc_state *state)
{
	state->ByteSink = pc_add_type(module, &spec, NULL);
	return state->ByteSink ? 0 : -1;
}
