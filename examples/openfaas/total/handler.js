'use strict';

module.exports = async (event, context) => {
  if (!Array.isArray(event.body?.items)) return context.status(422).fail('`items` is not a list');
  const total = event.body.items.reduce((sum, item) => sum + item.price * item.count, 0);
  return context.status(201).headers({ 'Content-Type': 'application/json' }).succeed({ total });
};
