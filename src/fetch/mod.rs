//! Images and kernels: unpacked and verified.
