"""The running service: build the parts, start them, watch over them, stop them."""
