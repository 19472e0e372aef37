"""A generator streams: the caller sees each word as it is made."""


def handle(event, context):
    for word in event.body.decode().split():
        yield word[::-1] + "\n"
