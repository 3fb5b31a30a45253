// Where tensors lie in memory, and how, read through DLPack's table of C functions (dlpack.h, version 1), which is stable from torch to
// torch: a few nanoseconds a tensor, where each of its attributes takes Python tens.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace zokern {

struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t* shape;
    const int64_t* strides;
    uint64_t byte_offset;
};

struct DLPackExchangeAPI {
    uint32_t major, minor;
    const DLPackExchangeAPI* older;
    void* managed[3];
    int (*dltensor_from_py_object_no_sync)(void* py_object, DLTensor* out);
};

/// A type of tensors -> (list of such) -> bytes: address, device, dtype, shape and strides of each; none where one of them cannot be told.
inline pybind11::cpp_function location_by(const pybind11::type& type) {
    const pybind11::object capsule = type.attr("__dlpack_c_exchange_api__");
    const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api) throw pybind11::error_already_set();
    if (api->major != 1 || !api->dltensor_from_py_object_no_sync) throw pybind11::value_error("not the table of DLPack 1");
    return pybind11::cpp_function([type, api](const pybind11::list& tensors) {
        std::string told;
        told.reserve(tensors.size() * 64);
        for (const pybind11::handle tensor : tensors) {
            DLTensor t;
            if (!PyObject_TypeCheck(tensor.ptr(), reinterpret_cast<PyTypeObject*>(type.ptr())))
                throw pybind11::type_error("a " + std::string(Py_TYPE(tensor.ptr())->tp_name) + " is no tensor: pass tensors");
            if (api->dltensor_from_py_object_no_sync(tensor.ptr(), &t)) {
                PyErr_Clear();
                return pybind11::bytes();
            }
            told.append(reinterpret_cast<const char*>(&t), offsetof(DLTensor, shape));
            told.append(reinterpret_cast<const char*>(&t.byte_offset), sizeof t.byte_offset);
            for (const int64_t* sizes : {t.shape, t.strides})
                if (sizes) told.append(reinterpret_cast<const char*>(sizes), t.ndim * sizeof *sizes);
        }
        return pybind11::bytes(told);
    });
}

}  // namespace zokern
