"""The job structures of the CPU kernels' headers for ctypes: Python fills them in, the kernels read them."""

from __future__ import annotations

import ctypes

MAX_LEVELS = 16  # FOCALNET_MAX_LEVELS of focal_context.h
MAX_SCALES = 16  # FOCALNET_MAX_SCALES of deformable.h


class FocalContextJob(ctypes.Structure):
    """``FocalContextJob`` of focal_context.h, field by field."""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("gates", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * MAX_LEVELS),
        ("grad_weights", ctypes.c_void_p * MAX_LEVELS),
        ("grad_gates", ctypes.c_void_p),
        ("context_stride", ctypes.c_int64 * 3),
        ("gates_stride", ctypes.c_int64 * 3),
        ("shape", ctypes.c_int64 * 4),
        ("kernels", ctypes.c_int32 * MAX_LEVELS),
        ("L", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class RowsJob(ctypes.Structure):
    """``RowsJob`` of rows.h, field by field."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("residual_grad", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("gelu_out", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("moments", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("levels", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class DeformableJob(ctypes.Structure):
    """``DeformableJob`` of deformable.h, field by field."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("locations", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("grad_values", ctypes.c_void_p),
        ("grad_locations", ctypes.c_void_p),
        ("grad_weights", ctypes.c_void_p),
        ("values_stride", ctypes.c_int64 * 3),
        ("shape", ctypes.c_int64 * 6),
        ("heights", ctypes.c_int64 * MAX_SCALES),
        ("widths", ctypes.c_int64 * MAX_SCALES),
        ("L", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )
