"""The rules of the wire: values in, values out; nothing here waits, reads a clock or knows Quart."""
