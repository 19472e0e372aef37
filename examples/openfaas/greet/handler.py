import os

from .words import join


def handle(event, context):
    name = event.query.get("name") or event.body.decode() or "stranger"
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "text/plain", "X-Served-From": context.hostname},
        "body": join(os.environ["greeting"], name) + os.environ["ending"],
    }
