// Two parameters: the whole call. A plain object with a statusCode is the whole reply; anything else is its body.
export async function handle(event, context) {
  const { name = "stranger" } = event.query;
  return {
    statusCode: 200,
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ hello: name, call: context.callId }),
  };
}
