//! The activator: per revision a bounded queue, slots, and the choice of instance.
