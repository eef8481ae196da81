//! virtio 1.2: transport, queues, devices.
