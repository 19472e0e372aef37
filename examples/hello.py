def handle(req):
    return f"Hello, {req or 'stranger'}!\n"
