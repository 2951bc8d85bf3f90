/* The loop of a fan-out, in C: the same bytes to many sockets, the interpreter's lock given back once.
 *
 * What it gains stands in docs/performance.md. Without it, where no compiler was at hand, Python does the same, one
 * socket after the other: see handlers/connection.py.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <limits.h>
#include <sys/socket.h>

#define MOST 256 /* sockets of one call */

PyDoc_STRVAR(send_to_each_doc,
    "send_to_each(descriptors: list[int], data: bytes) -> list[tuple[int, int]]\n"
    "--\n\n"
    "Hand data to the kernel for each of these sockets, which do not block; at most 256.\n\n"
    "Answers (place in the list, bytes taken) of those that did not take all of it: 0 when it takes none now, -errno\n"
    "when the connection is no more. Raises ValueError for too many, and for what can be no descriptor.");

static PyObject *send_to_each(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyList_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "send_to_each(descriptors: list[int], data: bytes)");
        return NULL;
    }
    const Py_ssize_t sockets = PyList_Size(arguments[0]);
    if (sockets > MOST) {
        PyErr_Format(PyExc_ValueError, "at most %d sockets at once", MOST);
        return NULL;
    }
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(arguments[1], &data, &size) < 0)
        return NULL;
    int descriptors[MOST];
    ssize_t taken[MOST];
    for (Py_ssize_t place = 0; place < sockets; place++) {
        const long descriptor = PyLong_AsLong(PyList_GetItem(arguments[0], place));
        if (descriptor == -1 && PyErr_Occurred())
            return NULL;
        if (descriptor < -1 || descriptor > INT_MAX) {
            PyErr_SetString(PyExc_ValueError, "no descriptor");
            return NULL;
        }
        descriptors[place] = (int)descriptor;
    }
    Py_ssize_t complete = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t place = 0; place < sockets; place++) {
        ssize_t result;
        do
            result = send(descriptors[place], data, (size_t)size, 0);
        while (result < 0 && errno == EINTR);
        if (result < 0)
            result = errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
        taken[place] = result;
        complete += result == size;
    }
    Py_END_ALLOW_THREADS
    PyObject *rest = PyList_New(0);
    if (rest == NULL || complete == sockets)
        return rest;
    for (Py_ssize_t place = 0; place < sockets; place++) {
        if (taken[place] == size)
            continue;
        PyObject *pair = Py_BuildValue("(nn)", place, (Py_ssize_t)taken[place]);
        if (pair == NULL || PyList_Append(rest, pair) < 0) {
            Py_XDECREF(pair);
            Py_DECREF(rest);
            return NULL;
        }
        Py_DECREF(pair);
    }
    return rest;
}

static PyMethodDef methods[] = {
    {"send_to_each", (PyCFunction)(void (*)(void))send_to_each, METH_FASTCALL, send_to_each_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "What is too slow in Python, and has a twin there.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&module); }
