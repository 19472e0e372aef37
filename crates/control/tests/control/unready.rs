//! Instances whose readiness probe fails while they serve: they live, count, and are not taken for ready.

use serde_json::json;

use crate::house::{House, id, pass};

/// What is shown of a revision: wanted, ready, starting.
fn gauge(house: &House) -> (u32, u32, u32) {
    let all = house.handle.gauges();
    let gauge = all.iter().find(|gauge| gauge.revision == id("hello", 1)).expect("it has instances");
    (gauge.want, gauge.ready, gauge.starting)
}

#[tokio::test(start_paused = true)]
async fn none_is_started_in_its_place_and_it_is_replaced_when_it_dies() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 2}})).await;
    pass(5.0).await;
    assert_eq!(gauge(&house), (2, 2, 0));
    let one = house.instance("hello", 1);
    assert!(house.stage.fake.rest(&one, true));
    pass(30.0).await;
    assert_eq!(gauge(&house), (2, 1, 1), "it lives, and is to be ready again");
    assert_eq!(house.count("hello", 1), 2);
    assert!(house.stage.fake.rest(&one, false));
    pass(1.0).await;
    assert_eq!(gauge(&house), (2, 2, 0));

    assert!(house.stage.fake.rest(&one, true));
    pass(30.0).await;
    assert!(house.stage.fake.kill(&one));
    pass(3.0).await;
    assert_eq!((gauge(&house), house.count("hello", 1)), ((2, 2, 0), 2), "another took its place");
}

#[tokio::test(start_paused = true)]
async fn it_is_the_first_to_go() {
    let house = House::new();
    house.deploy("hello", json!({"scale": {"min": 2, "zeroAfter": "10s"}})).await;
    pass(5.0).await;
    let one = house.instance("hello", 1);
    house.stage.fake.rest(&one, true);
    house.scale("hello", 3).await;
    pass(1.0).await;
    assert_eq!(house.count("hello", 1), 3);
    pass(90.0).await;
    assert_eq!((gauge(&house), house.count("hello", 1)), ((2, 2, 0), 2));
    assert!(house.stage.fake.ready().iter().all(|ready| ready.id != one));
}
